"""Rows to be shown: which token stands where, what it weighs, and what happens to the row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetooth_hooks.data.examples import Rendered
from finetooth_hooks.data.recipe_rows import PreviewRow
from finetooth_hooks.protocols import Tokenizer

LONGEST_CHARACTER = 4
"""Tokens that a character may be cut into, one a byte."""
UNREADABLE = "\ufffd"


@dataclass(frozen=True)
class Piece:
    """What is shown as one: a token, or the tokens that a character is cut into.

    Attributes:
        ids: of the tokens.
        text: what they say.
        weights: of each token; 0 is not trained.
        special: it is markup, not text.
        opens: a message begins here.
        cut: behind what `train.max_length` keeps.
        medium: the tokens stand for an image, sound or video, and the text says which size it has.
    """

    ids: tuple[int, ...]
    text: str
    weights: tuple[float, ...]
    special: bool = False
    opens: bool = False
    cut: bool = False
    medium: bool = False


@dataclass(frozen=True)
class Target:
    """A position: the token that is read there, and the one that is predicted from it and all before.

    Attributes:
        position: from 0.
        id, text: of the token that is read; a character that several tokens make says which part it is.
        target: the token that is predicted.
        target_text: what it says.
        weight: what predicting it counts; 0 is not at all.
        cut: behind what `train.max_length` keeps.
        special: whether the token that is read, and the one that is predicted, is markup and not text.
        medium: both stand for the same image, sound or video.
    """

    position: int
    id: int
    text: str
    target: int
    target_text: str
    weight: float
    cut: bool
    special: tuple[bool, bool]
    medium: bool = False


@dataclass(frozen=True)
class RowView:
    """One row to be shown; see `PreviewRow`."""

    number: int
    id: str
    pieces: tuple[Piece, ...]
    fate: str
    used: bool = True
    broken: bool = False

    @property
    def positions(self) -> int:
        """How many tokens are read, as `train.max_length` counts them: all but the last, which is only predicted."""
        return max(0, sum(len(piece.ids) for piece in self.pieces) - 1)

    @property
    def trained(self) -> int:
        """Tokens with a weight that are kept; the first of a row is predicted from nothing and never counts."""
        weights = [weight for piece in self.pieces if not piece.cut for weight in piece.weights]
        return sum(1 for weight in weights[1:] if weight)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is predicted at each position."""
        tokens = [(piece, at) for piece in self.pieces for at in range(len(piece.ids))]
        return tuple(
            Target(
                position,
                piece.ids[at],
                _part(piece, at),
                next_.ids[its],
                _part(next_, its),
                next_.weights[its],
                next_.cut,
                (piece.special, next_.special),
                piece is next_ and piece.medium,
            )
            for position, ((piece, at), (next_, its)) in enumerate(itertools.pairwise(tokens))
        )


def view(row: PreviewRow, tokenizer: Tokenizer) -> RowView:
    """The row to be shown."""
    pieces = tuple(_pieces(row.rendered, row.kept, tokenizer))
    return RowView(row.number, row.id, pieces, row.fate, row.used, row.broken)


def _part(piece: Piece, at: int) -> str:
    """What a token of a piece says."""
    whole = len(piece.ids)
    return piece.text if whole == 1 or piece.medium else f"{piece.text} ({at + 1} of {whole})"


def _pieces(rendered: Rendered, kept: int, tokenizer: Tokenizer) -> Iterator[Piece]:
    opens = {start for start, _ in rendered.spans}
    media = {medium.start: medium for medium in rendered.media}
    at = 0
    while at < len(rendered.tokens):
        if at in media:
            medium = media[at]
            ids = tuple(rendered.tokens[at : medium.stop])
            text = f"[{medium.medium.kind} {medium.size} -> {medium.length} tokens]"
            yield Piece(ids, text, rendered.weights[at : medium.stop], True, at in opens, medium.stop > kept, True)
            at = medium.stop
            continue
        size = _whole(rendered.tokens[at : at + LONGEST_CHARACTER], tokenizer)
        ids = tuple(rendered.tokens[at : at + size])
        text = tokenizer.decode(ids)
        special = bool(text) and not tokenizer.decode(ids, skip_special=True)
        yield Piece(ids, text, tuple(rendered.weights[at : at + size]), special, at in opens, at >= kept)
        at += size


def _whole(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many of the tokens make whole characters; 1 where they never do."""
    return next((n for n in range(1, len(ids) + 1) if UNREADABLE not in tokenizer.decode(ids[:n])), 1)
