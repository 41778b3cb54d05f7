"""The reward `soft_overlong`: soft overlong punishment (Yu et al., 2025, DAPO, arXiv:2503.14476, eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from finetooth_hooks import Options
from pydantic import Field, model_validator

from finetooth_rules.per_completion import ScoreWithColumn


class OverlongOptions(Options):
    """Options of the reward `soft_overlong`."""

    max_length: int = Field(ge=1)
    """Maximum length in tokens (L_max), usually `method.max_completion_length`."""
    cache: int = Field(ge=1)
    """Number of tokens before the maximum over which the score falls from 0 to -1 (L_cache)."""

    @model_validator(mode="after")
    def _within(self) -> OverlongOptions:
        if self.cache > self.max_length:
            raise ValueError(f"cache is {self.cache}, above max_length {self.max_length}")
        return self


def score(completion: str, tokens: Sequence[int], *, longest: int, cache: int) -> float:
    """0 up to L_max - L_cache tokens, (L_max - L_cache - n) / L_cache up to L_max, -1 beyond."""
    count = len(tokens)
    if count <= longest - cache:
        return 0.0
    return (longest - cache - count) / cache if count <= longest else -1.0


def build(options: OverlongOptions) -> ScoreWithColumn:
    of = partial(score, longest=options.max_length, cache=options.cache)
    return ScoreWithColumn("soft_overlong", "completion_ids", of, option="")
