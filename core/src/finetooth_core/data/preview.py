"""Rows as the model will see them: which token stands where, what it weighs, and what becomes of the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.examples import Example, Rendered
from finetooth_hooks.preparation import render_rows
from finetooth_hooks.tally import Tally
from finetooth_hooks.token_rows import TokenPortion

if TYPE_CHECKING:
    from finetooth_hooks.protocols import Tokenizer

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
        image: the tokens stand for an image, and the text says which size it has.
    """

    ids: tuple[int, ...]
    text: str
    weights: tuple[float, ...]
    special: bool = False
    opens: bool = False
    cut: bool = False
    image: bool = False


@dataclass(frozen=True)
class RenderedRow:
    """One row as it was rendered; its tokens are not read back yet.

    Attributes:
        number: from 1, in the order of the source.
        id: as errors name it.
        rendered: all of its tokens; none if it cannot be rendered.
        kept: tokens that `train.max_length` keeps.
        fate: what becomes of it, in words.
        used: it becomes data.
    """

    number: int
    id: str
    rendered: Rendered
    kept: int
    fate: str
    used: bool

    def view(self, tokenizer: Tokenizer) -> RowView:
        """The row to be shown."""
        pieces = tuple(_pieces(self.rendered, self.kept, tokenizer))
        return RowView(self.number, self.id, pieces, self.fate, self.used)


@dataclass(frozen=True)
class RowView:
    """One row to be shown; see `RenderedRow`."""

    number: int
    id: str
    pieces: tuple[Piece, ...]
    fate: str
    used: bool = True

    @property
    def tokens(self) -> int:
        """How many."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def trained(self) -> int:
        """Tokens with a weight that are kept; the first of a row is predicted from nothing and never counts."""
        kept = [weight for piece in self.pieces if not piece.cut for weight in piece.weights]
        return sum(1 for weight in kept[1:] if weight)


def rendered_rows(context: RunContext, split: str) -> Iterator[RenderedRow]:
    """The rows of a split as the method (or, held out, the first evaluator) renders them, one after the other.

    Raises:
        RecipeError: the recipe gives no data for the split, or nothing renders them.
        DataError: a file or row is broken.
    """
    if not context.has(split):
        raise RecipeError(f"data.{split}", "the recipe gives no data for it", action=f"set data.{split}")
    if split not in context.prepared_as:
        raise RecipeError(f"data.{split}", "no method or evaluator of the recipe turns its rows into tokens")
    rendering, limit = context.prepared_as[split]
    render = rendering.load(context)
    for number, (id_, example) in enumerate(context.examples(split).rows, start=1):
        try:
            rendered = render(example)
        except DataError as error:
            yield RenderedRow(number, id_, Rendered((), ()), 0, f"refused: {error.problem}", used=False)
            continue
        portion, tally = render_rows([(id_, example)], partial(_same, rendered), limit)
        if rendered.others:
            yield from _together(number, id_, rendered, portion, tally)
            continue
        whole = tally.split or not len(portion)
        kept = len(rendered.tokens) if whole else int(portion.starts[1])
        yield RenderedRow(number, id_, rendered, kept, _fate(tally, kept), used=tally.used > 0)


def _together(number: int, id_: str, rendered: Rendered, portion: TokenPortion, tally: Tally) -> Iterator[RenderedRow]:
    """The sequences of a row that are kept or left out together, one after the other."""
    for place, part in enumerate((rendered, *rendered.others)):
        kept = int(portion.starts[place + 1] - portion.starts[place]) if len(portion) else len(part.tokens)
        yield RenderedRow(number, f"{id_}#{part.part}", part, kept, _fate(tally, kept), used=tally.used > 0)


def _same(rendered: Rendered, example: Example) -> Rendered:
    return rendered


def _fate(tally: Tally, kept: int) -> str:
    refused = tally.refused or next(iter(tally.unusable.first), None)
    if refused is not None:
        return f"refused: {refused.problem}"
    if tally.split:
        return f"split into {tally.used} rows"
    if tally.dropped:
        return f"left out: {next(iter(tally.dropped))}"
    return f"cut to {kept - 1} positions" if tally.truncated else "used"


def _pieces(rendered: Rendered, kept: int, tokenizer: Tokenizer) -> Iterator[Piece]:
    opens = {start for start, _ in rendered.spans}
    images = {image.start: image for image in rendered.images}
    at = 0
    while at < len(rendered.tokens):
        if at in images:
            found = images[at]
            ids = tuple(rendered.tokens[at : found.stop])
            text = f"[image {found.width}x{found.height} -> {found.length} tokens]"
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
