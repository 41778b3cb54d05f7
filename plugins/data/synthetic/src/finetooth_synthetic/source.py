"""The source `synthetic`: rows of words that are drawn, the same for the same options and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from finetooth_hooks import DataError, Options, RecipeError, Row
from finetooth_hooks.bases import SourceBase
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from pydantic import Field

from finetooth_synthetic.words import whole_words

Shape = Literal["text", "messages"]


class SyntheticOptions(Options):
    """Options of `synthetic`."""

    rows: int = Field(1000, ge=1)
    """Number of rows."""
    length: int = Field(512, ge=1)
    """Tokens of the longest row, before any chat markup."""
    min_length: int | None = Field(None, ge=1)
    """Tokens of the shortest row; lengths between are equally likely. Default: all rows have `length`."""
    seed: int = Field(0, ge=0)
    """Seed of lengths and words. The training seed does not change them, so that a benchmark keeps its rows."""
    shape: Shape = "text"
    """`text`: a document, all of whose tokens train. `messages`: a question with a quarter of the tokens, and an answer
    with the rest."""


def build(options: SyntheticOptions, context: Context) -> DrawnRows:
    if options.min_length is not None and options.min_length > options.length:
        raise RecipeError(
            "source synthetic, min_length",
            f"{options.min_length} is more than length={options.length}",
            action="make it smaller",
        )
    if options.shape == "messages" and (options.min_length or options.length) < 2:
        raise RecipeError("source synthetic, shape", "messages take two tokens or more", action="raise the lengths")
    return DrawnRows(options, context.tokenizer, context.note)


class DrawnRows(SourceBase):
    """Rows; their ids are `synthetic-SEED:NUMBER`, from 1.

    Args:
        tokenizer: the model's; determines which words are one token.
        note: receives a note if lengths cannot be exact.
    """

    def __init__(self, options: SyntheticOptions, tokenizer: Tokenizer, note: Callable[[str], None]) -> None:
        self._options, self._tokenizer, self._note = options, tokenizer, note

    def files(self) -> tuple[Path, ...]:
        """None: options, code and the model's tokenizer decide every row."""
        return ()

    def rows(self) -> Iterator[Row]:
        """Yields rows of words drawn at random from the tokenizer; the seed decides them.

        Raises:
            DataError: the tokenizer has no words to draw from.
        """
        options = self._options
        words = whole_words(self._tokenizer)
        if not words:
            raise DataError("synthetic", "the model's tokenizer has no words of one token", action="use another model")
        shortest = options.length if options.min_length is None else options.min_length
        for number in range(1, options.rows + 1):
            draw = np.random.default_rng([options.seed, number])  # so that rows are those of a longer set too
            length = int(draw.integers(shortest, options.length, endpoint=True))
            drawn = [words[index] for index in draw.integers(0, len(words), length)]
            if number == 1:
                self._check(drawn)
            yield Row(f"synthetic-{options.seed}:{number}", self._values(drawn))

    def _values(self, drawn: list[str]) -> dict[str, Any]:
        if self._options.shape == "text":
            return {"text": "".join(drawn)}
        question = max(1, len(drawn) // 4)
        turns = (("user", drawn[:question]), ("assistant", drawn[question:]))
        return {"messages": [{"role": role, "content": "".join(words)} for role, words in turns]}

    def _check(self, drawn: list[str]) -> None:
        count = len(self._tokenizer.encode("".join(drawn)))
        if count != len(drawn):
            self._note(
                f"synthetic rows are only about as long as the options say: a row of {len(drawn)} words has "
                f"{count} tokens"
            )
