"""A row in the terminal: text coloured by what trains, or marked where colour is missing; and its targets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from finetooth_hooks.data.recipe_rows import PreviewRow
from finetooth_toolbox.cli.tables import table
from finetooth_toolbox.text.controls import escape_controls
from rich.console import Console, RenderableType
from rich.text import Text

from finetooth_data.views import Piece, RowView, Target
from finetooth_data.visible import BEGIN, CLOSE, END, FEED, OPEN, trains, visible

TRAINED, PARTLY, PLAIN, MARKUP, CUT = "bold green", "bold yellow", "", "cyan", "red strike"
BORDER = "\u2502"  # before the first token of a message


def facts(view: RowView) -> str:
    """How long a row is, what trains of it, and whether it is kept."""
    counts = f"{view.positions} tokens, {view.trained} trained, " if view.pieces else ""
    return f"{counts}{view.fate}"


def render(view: RowView, *, color: bool) -> Text:
    """One row: a line of facts, then its text."""
    text = Text()  # a style of the whole would run on through all that is appended
    heading = escape_controls(f"row {view.number}  {view.id}  {facts(view)}")
    text.append(f"{heading}\n", style="bold" if color else "")
    inside = False
    for piece, shown in zip(view.pieces, visible(view.pieces, brackets=not color), strict=True):
        if not color and trains(piece) != inside:
            text.append(BEGIN if trains(piece) else END)
        inside = trains(piece)
        if piece.opens:
            text.append(BORDER, style="dim")
        text.append(shown, style=_style(piece))
    if inside and not color:
        text.append(END)
    if view.pieces:
        text.append("\n")
    return text


def targets(console: Console, view: RowView) -> RenderableType:
    """What is predicted at each position, and what that counts; one line for the tokens of an image or sound."""
    lines: list[tuple[str, ...]] = []
    shown = [target for target in view.targets if not target.cut]
    for medium, run in itertools.groupby(shown, key=lambda target: target.medium):
        for target in [next(run)] if medium else run:
            reads, predicts = tokens(target)
            last = target.position + (1 + sum(1 for _ in run) if medium else 1) - 1
            places = str(target.position) if last == target.position else f"{target.position}-{last}"
            lines.append((places, str(target.id), reads, str(target.target), predicts, f"{target.weight:g}"))
    cut = len(view.targets) - len(shown)
    title = f"Targets of row {view.number}" + (
        f"; {cut:,} further {'is' if cut == 1 else 'are'} cut off" if cut else ""
    )
    return table(console, title, ("position", "reads", "token", "predicts", "token", "weight"), lines)


def tokens(target: Target) -> tuple[str, str]:
    """What is read at a position and what is predicted there, to be seen."""
    return _token(target.text, special=target.special[0]), _token(target.target_text, special=target.special[1])


def _token(text: str, *, special: bool) -> str:
    """One token: text in quotes, so that its blanks show."""
    (shown,) = visible([Piece((0,), text, (0.0,), special)])
    shown = shown.replace(f"{FEED}\n", FEED)
    return shown if special else f"'{shown}'"


def broken(rows: Sequence[PreviewRow], count: int) -> Text:
    """Rows that cannot be used.

    Args:
        rows: those that are named.
        count: how many there are.
    """
    lines = [f"  row {row.number}  {escape_controls(row.id)}  {escape_controls(row.fate)}" for row in rows]
    more = [f"  and {count - len(rows):,} more"] if count > len(rows) else []
    return Text("\n".join([f"{count:,} {'row' if count == 1 else 'rows'} cannot be used", *lines, *more]))


def legend(*, color: bool) -> Text:
    """What the marks mean."""
    signs = f"{OPEN} {CLOSE} a control token, not text; {BORDER} a message begins; {FEED} a line feed"
    length = "A token is predicted from all before it; the last one is only predicted, and not counted."
    if not color:
        return Text(f"{BEGIN} {END} trains; {signs}. {length}")
    text = Text()
    for style, meaning in (
        (TRAINED, "trains"), (PARTLY, "weighs other than 1"), (MARKUP, "markup, does not train"), (CUT, "cut off"),
    ):  # fmt: skip
        text.append(meaning, style=style)
        text.append("  ")
    text.append(f"{signs}. {length}")
    return text


def _style(piece: Piece) -> str:
    if piece.cut:
        return CUT
    if any(piece.weights):
        return TRAINED if set(piece.weights) == {1.0} else PARTLY
    return MARKUP if piece.special else PLAIN
