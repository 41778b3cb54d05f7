"""A row in the terminal: text coloured by what trains, or marked where there is no colour."""

from __future__ import annotations

from rich.text import Text

from finetooth_core.data.preview import Piece, RowView

TRAINED, PARTLY, PLAIN, MARKUP, CUT = "bold green", "bold yellow", "", "cyan", "red strike"
BORDER = "\u2502"  # before the first token of a message


def render(view: RowView, *, color: bool) -> Text:
    """One row: a line of facts, then its text."""
    facts = f"row {view.number}  {view.id}  {view.tokens} tokens, {view.trained} trained  {view.fate}"
    text = Text(f"{facts}\n", style="bold" if color else "")
    inside = False
    for piece in view.pieces:
        trains = any(piece.weights) and not piece.cut
        if not color and trains != inside:
            text.append("[[" if trains else "]]")
        inside = trains
        if piece.opens:
            text.append(BORDER, style="dim")
        text.append(_visible(piece), style=_style(piece))
    if inside and not color:
        text.append("]]")
    text.append("\n")
    return text


def legend(*, color: bool) -> Text:
    """What the marks mean."""
    if not color:
        return Text(
            f"[[ ]] trains; {BORDER} a message begins; \u23ce a line feed. A token is predicted from all before it."
        )
    text = Text()
    for style, meaning in (
        (TRAINED, "trains"), (PARTLY, "weighs other than 1"), (MARKUP, "markup, does not train"), (CUT, "cut off"),
    ):  # fmt: skip
        text.append(meaning, style=style)
        text.append("  ")
    text.append(f"{BORDER} a message begins  \u23ce a line feed")
    return text


def _style(piece: Piece) -> str:
    if piece.cut:
        return CUT
    if any(piece.weights):
        return TRAINED if set(piece.weights) == {1.0} else PARTLY
    return MARKUP if piece.special else PLAIN


def _visible(piece: Piece) -> str:
    """The text, its line feeds and other unseen characters to be seen."""
    shown = piece.text.replace("\n", "\u23ce\n")
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
