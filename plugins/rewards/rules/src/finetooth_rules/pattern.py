"""The reward `regex_match`."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import regex
from finetooth_hooks import Options
from pydantic import Field, field_validator

from finetooth_rules.per_completion import ScoreEach


class RegexOptions(Options):
    """Options of the reward `regex_match`."""

    pattern: str = Field(min_length=1)
    """The regular expression, in the syntax of the package `regex`."""
    whole: bool = False
    """Whether it must match the whole answer, not just a part."""
    ignore_case: bool = False
    """Ignore upper and lower case."""
    dot_all: bool = True
    """Whether `.` matches a line break too."""
    limited: Literal["zero", "none"] = "zero"
    """Score of an answer whose matching takes longer than `time_limit`: 0, or None, which leaves it out."""
    time_limit: float = Field(default=1.0, gt=0)
    """Seconds for an answer: some patterns would take forever on some answers."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


def score(completion: str, *, options: RegexOptions, compiled: Any) -> float | None:
    match = compiled.fullmatch if options.whole else compiled.search
    try:
        return float(match(completion, timeout=options.time_limit) is not None)
    except TimeoutError:
        return 0.0 if options.limited == "zero" else None


def build(options: RegexOptions) -> ScoreEach:
    flags = (regex.IGNORECASE if options.ignore_case else 0) | (regex.DOTALL if options.dot_all else 0)
    return ScoreEach(partial(score, options=options, compiled=regex.compile(options.pattern, flags)))
