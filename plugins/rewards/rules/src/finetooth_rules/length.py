"""The reward `answer_length`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from finetooth_hooks import Options
from pydantic import Field, model_validator

from finetooth_rules.per_completion import ScoreEach, ScoreWithColumn


class LengthOptions(Options):
    """Options of the reward `answer_length`."""

    least: int = Field(default=0, ge=0)
    """The shortest length that scores 1."""
    most: int | None = Field(default=None, ge=1)
    """The longest length that scores 1. Left out, no limit applies."""
    unit: Literal["words", "characters", "tokens"] = "words"
    """What to count."""
    slack: int = Field(default=0, ge=0)
    """Beyond a limit the score falls linearly to 0 over this many units; 0: at once."""

    @model_validator(mode="after")
    def _bounds(self) -> LengthOptions:
        if self.most is None and self.least == 0:
            raise ValueError("give least, most, or both")
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most is {self.most}, below least {self.least}")
        return self


def of_length(count: int, *, options: LengthOptions) -> float:
    """The score of an answer of this length."""
    beyond = max(options.least - count, count - options.most if options.most is not None else 0, 0)
    return 1.0 if beyond == 0 else max(0.0, 1 - beyond / (options.slack + 1))


def of_text(completion: str, *, options: LengthOptions) -> float:
    return of_length(len(completion if options.unit == "characters" else completion.split()), options=options)


def of_tokens(completion: str, tokens: Sequence[int], *, options: LengthOptions) -> float:
    return of_length(len(tokens), options=options)


def build(options: LengthOptions) -> Any:
    if options.unit == "tokens":
        return ScoreWithColumn("answer_length", "completion_ids", partial(of_tokens, options=options), option="")
    return ScoreEach(partial(of_text, options=options))
