"""Rows as a page of their own: no script, no network, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from finetooth_core.data.preview import Piece, RowView

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
.c { color: var(--cut); text-decoration: line-through; } .o { border-left: 2px solid var(--quiet); margin-left: 2px; }
span[title] { border-radius: 2px; } span[title]:hover { outline: 1px solid var(--quiet); }
"""


def render(views: Sequence[RowView], split: str, model: str) -> str:
    """The page; each token says its id and weight when pointed at."""
    title = f"data.{split} as {model} sees it"
    legend = (
        '<p><span class="t">trains</span> &nbsp; <span class="p">weighs other than 1</span> &nbsp; '
        '<span class="m">markup</span> &nbsp; <span class="c">cut off</span> &nbsp; '
        '<span class="o">&nbsp;a message begins</span> &nbsp; a token is predicted from all before it</p>'
    )
    rows = "\n".join(_section(view) for view in views) or "<p>No such rows.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>{legend}\n{rows}\n</body></html>\n"
    )


def _section(view: RowView) -> str:
    facts = f"{view.tokens} tokens, {view.trained} trained, {view.fate}"
    place = 0
    spans = []
    for piece in view.pieces:
        spans.append(_span(piece, place))
        place += len(piece.ids)
    head = f'<h2>row {view.number} <span class="fate">{escape(view.id)} &middot; {escape(facts)}</span></h2>'
    return f"<section>{head}<pre>{''.join(spans)}</pre></section>"


def _span(piece: Piece, place: int) -> str:
    shown_ids = piece.ids[:1] if piece.image else piece.ids
    ids = " ".join(map(str, shown_ids)) + (f", {len(piece.ids)} tokens" if piece.image else "")
    weights = " ".join(f"{weight:g}" for weight in piece.weights[: len(shown_ids)])
    classes = ["o"] if piece.opens else []
    if piece.cut:
        classes.append("c")
    elif any(piece.weights):
        classes.append("t" if set(piece.weights) == {1.0} else "p")
    elif piece.special:
        classes.append("m")
    shown = escape(piece.text).replace("\n", "\u23ce\n")
    named = f' class="{" ".join(classes)}"' if classes else ""
    return f'<span{named} title="token {place}: id {ids}, weight {weights}">{shown}</span>'
