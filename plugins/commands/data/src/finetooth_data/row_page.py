"""Rows as a page of their own: no script, no network, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from finetooth_data.row_text import facts, tokens
from finetooth_data.views import Piece, RowView, Target
from finetooth_data.visible import visible

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --back: #fff; --quiet: #6b6b6b; --line: #d6d6d6;
  --trained: #c9efd0; --partly: #f7e6b5; --markup: #0b6b8a; --cut: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --back: #16181b; --quiet: #9a9a9a; --line: #3a3d42;
  --trained: #1f4d2b; --partly: #574714; --markup: #6cc7e6; --cut: #ff8a80; } }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid var(--line); padding: .8rem 0; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
.fate { color: var(--quiet); font-weight: normal; }
pre { font: 14px/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.t { background: var(--trained); } .p { background: var(--partly); } .m { color: var(--markup); }
.s { outline: 1px solid currentColor; outline-offset: 1px; border-radius: 2px; margin: 0 3px; }
.e { color: var(--cut); } dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem; margin: 0 0 1rem; }
dt { color: var(--quiet); } dd { margin: 0; }
.c { color: var(--cut); text-decoration: line-through; } .o { border-left: 2px solid var(--quiet); margin-left: 2px; }
span[title] { border-radius: 2px; } span[title]:hover { outline: 2px solid var(--quiet); }
"""


def render(views: Sequence[RowView], split: str, model: str, remarks: Sequence[tuple[str, str]] = ()) -> str:
    """The page; each token says its id, its weight and what is predicted from it when pointed at.

    Args:
        remarks: further facts, each with what it is about.
    """
    title = f"data.{split} as {model} sees it"
    legend = (
        '<p><span class="t">trains</span> &nbsp; <span class="p">weighs other than 1</span> &nbsp; '
        '<span class="m s">control token</span> &nbsp; <span class="c">cut off</span> &nbsp; '
        '<span class="o">&nbsp;a message begins</span> &nbsp; a token is predicted from all before it; the last one is '
        "only predicted, and not counted</p>"
    )
    rows = "\n".join(_section(view) for view in views) or "<p>No such rows.</p>"
    facts = "".join(f"<dt>{escape(topic)}</dt><dd>{escape(text)}</dd>" for topic, text in remarks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>{f'<dl>{facts}</dl>' if facts else ''}{legend}\n"
        f"{rows}\n</body></html>\n"
    )


def _section(view: RowView) -> str:
    place = 0
    spans = []
    targets = view.targets
    for piece, shown in zip(view.pieces, visible(view.pieces, controls=False), strict=True):
        spans.append(_span(piece, shown, targets[max(0, place - 1) : place + len(piece.ids)], place))
        place += len(piece.ids)
    fate = f'<span class="fate{" e" if view.broken else ""}">{escape(view.id)} &middot; {escape(facts(view))}</span>'
    return f"<section><h2>row {view.number} {fate}</h2><pre>{''.join(spans)}</pre></section>"


def _span(piece: Piece, shown: str, targets: Sequence[Target], place: int) -> str:
    classes = ["o"] if piece.opens else []
    if piece.cut:
        classes.append("c")
    elif any(piece.weights):
        classes.append("t" if set(piece.weights) == {1.0} else "p")
    elif piece.special:
        classes.append("m")
    if piece.special:
        classes.append("s")
    named = f' class="{" ".join(classes)}"' if classes else ""
    title = escape("\n".join(_title(piece, targets, place))).replace("\n", "&#10;")
    return f'<span{named} title="{title}">{escape(shown)}</span>'


def _title(piece: Piece, targets: Sequence[Target], place: int) -> list[str]:
    """What is said of each token of a piece; of an image or sound only of the first one, and what follows the last."""
    by_position = {target.position: target for target in targets}
    lines: list[str] = []
    for at in range(len(piece.ids)) if not piece.medium else (0, len(piece.ids) - 1):
        position = place + at
        target, before = by_position.get(position), by_position.get(position - 1)
        itself = tokens(target)[0] if target is not None else tokens(before)[1] if before is not None else ""
        lines.append(f"token {position}: id {piece.ids[at]}, weight {piece.weights[at]:g}, {itself}")
        if target is None:
            lines.append("the last one: nothing is predicted from it")
        else:
            lines.append(f"predicts id {target.target}, weight {target.weight:g}, {tokens(target)[1]}")
    return lines
