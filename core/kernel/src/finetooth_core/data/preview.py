"""Rows as the model will see them: which token stands where, what it weighs, and what becomes of the row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.examples import Example, LeftOut, Rendered
from finetooth_hooks.preparation import Limit
from finetooth_rows.preparing import load_rendering, render_rows
from finetooth_rows.tally import Tally

from finetooth_core.data.every_row import every_row

if TYPE_CHECKING:
    from finetooth_hooks.protocols import Tokenizer
    from finetooth_rows.prepared_as import PreparedAs

    from finetooth_core.context import RunContext

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
class RenderedRow:
    """One row as it was rendered; its tokens are not read back yet.

    Attributes:
        number: from 1, in the order of the source.
        id: as errors name it.
        rendered: all of its tokens; none if it cannot be rendered, or its format leaves it out.
        kept: tokens that `train.max_length` keeps.
        fate: what becomes of it, in words.
        used: it becomes data.
        error: with which a run ends because of it; None if it does not.
        read: its format could read it.
    """

    number: int
    id: str
    rendered: Rendered
    kept: int
    fate: str
    used: bool
    error: DataError | None = None
    read: bool = True

    @property
    def broken(self) -> bool:
        return self.error is not None

    def view(self, tokenizer: Tokenizer) -> RowView:
        """The row to be shown."""
        pieces = tuple(_pieces(self.rendered, self.kept, tokenizer))
        return RowView(self.number, self.id, pieces, self.fate, self.used, self.broken)


@dataclass(frozen=True)
class RowView:
    """One row to be shown; see `RenderedRow`."""

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
        kept = [weight for piece in self.pieces if not piece.cut for weight in piece.weights]
        return sum(1 for weight in kept[1:] if weight)

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


def _part(piece: Piece, at: int) -> str:
    """What a token of a piece says."""
    whole = len(piece.ids)
    return piece.text if whole == 1 or piece.medium else f"{piece.text} ({at + 1} of {whole})"


def rendered_rows(context: RunContext, split: str, how: PreparedAs | None) -> Iterator[RenderedRow]:
    """The rows of a split as the method (or, held out, the first evaluator) renders them, one after the other, broken
    ones among them.

    Args:
        how: they become tokens.

    Raises:
        RecipeError: the recipe gives no data for the split, or nothing renders them.
        DataError: a source is missing or cannot be read any further.
    """
    if not context.data.has(split):
        raise RecipeError(f"data.{split}", "the recipe gives no data for it", action=f"set data.{split}")
    if how is None:
        raise RecipeError(f"data.{split}", "no method or evaluator of the recipe turns its rows into tokens")
    render = load_rendering(how.rendering, context)
    for number, item in enumerate(every_row(context.data.rows(split)), start=1):
        if isinstance(item, DataError):
            yield replace(_broken(number, item.where, item), read=False)
            continue
        id_, example = item
        if isinstance(example, LeftOut):
            yield RenderedRow(number, id_, Rendered((), ()), 0, f"left out: {example.reason}", used=False)
            continue
        try:
            rendered = render(example)
        except DataError as error:
            yield _broken(number, id_, error)
            continue
        if rendered.others:
            yield from _together(number, id_, example, rendered, how.limit)
        else:
            yield _row(number, id_, example, rendered, how.limit)


def _row(number: int, id_: str, example: Example, rendered: Rendered, limit: Limit | None) -> RenderedRow:
    portion, tally = render_rows([(id_, example)], partial(_same, rendered), limit)
    whole = tally.split or not len(portion)
    kept = len(rendered.tokens) if whole else int(portion.starts[1])
    refused = next(iter((*tally.refused.first, *tally.unusable.first)), None)
    fate = _fate(tally, kept) if refused is None else _refusal(id_, refused)
    return RenderedRow(number, id_, rendered, kept, fate, used=tally.used > 0, error=refused)


def _broken(number: int, id_: str, error: DataError) -> RenderedRow:
    return RenderedRow(number, id_, Rendered((), ()), 0, _refusal(id_, error), used=False, error=error)


def _refusal(id_: str, error: DataError) -> str:
    """The error without the row's id, which stands beside it."""
    return f"refused: {error.problem.removeprefix(f'{id_}: ')}"


def _together(
    number: int, id_: str, example: Example, rendered: Rendered, limit: Limit | None
) -> Iterator[RenderedRow]:
    """The sequences of a row that are kept or left out together, one after the other."""
    portion, tally = render_rows([(id_, example)], partial(_same, rendered), limit)
    refused = next(iter((*tally.refused.first, *tally.unusable.first)), None)
    for place, part in enumerate((rendered, *rendered.others)):
        kept = int(portion.starts[place + 1] - portion.starts[place]) if len(portion) else len(part.tokens)
        fate = _fate(tally, kept) if refused is None else _refusal(id_, refused)
        name = f"{id_}#{part.part}"
        yield RenderedRow(number, name, part, kept, fate, used=tally.used > 0, error=refused)


def _same(rendered: Rendered, example: Example) -> Rendered:
    return rendered


def _fate(tally: Tally, kept: int) -> str:
    if tally.split:
        return f"split into {tally.used} rows"
    if tally.dropped:
        return f"left out: {next(iter(tally.dropped))}"
    return f"cut to {kept - 1} tokens" if tally.truncated else "used"


def _pieces(rendered: Rendered, kept: int, tokenizer: Tokenizer) -> Iterator[Piece]:
    opens = {start for start, _ in rendered.spans}
    media = {one.start: one for one in rendered.media}
    at = 0
    while at < len(rendered.tokens):
        if at in media:
            found = media[at]
            ids = tuple(rendered.tokens[at : found.stop])
            text = f"[{found.medium.kind} {found.size} -> {found.length} tokens]"
            yield Piece(ids, text, rendered.weights[at : found.stop], True, at in opens, found.stop > kept, True)
            at = found.stop
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
