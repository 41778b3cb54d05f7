"""Checks before sampling for engines of any array library, and their random streams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from finetooth_hooks import EngineError, Sampling

from finetooth_steps.draws import stream_key


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Check sampling settings.

    Raises:
        EngineError: a number is out of its range, or `logit_bias` names an id twice or one the model does not have.
    """
    if sampling.max_tokens < 1 or sampling.n < 1 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
        raise EngineError(
            f"sampling: {sampling} makes no sense", action="max_tokens, n >= 1; top_k >= 0; 0 < top_p <= 1"
        )
    if not 0 <= sampling.temperature < float("inf"):
        raise EngineError(f"sampling.temperature is {sampling.temperature}", action="give a finite number >= 0")
    if not 0 <= sampling.min_p <= 1:
        raise EngineError(f"sampling.min_p is {sampling.min_p}", action="give a number from 0 to 1")
    if not 0 < sampling.repetition_penalty < float("inf"):
        raise EngineError(
            f"sampling.repetition_penalty is {sampling.repetition_penalty}", action="give a finite number > 0"
        )
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(getattr(sampling, name)):
            raise EngineError(f"sampling.{name} is {getattr(sampling, name)}", action="give a finite number")
    wrong = [token for token, added in sampling.logit_bias if not (0 <= token < vocabulary and math.isfinite(added))]
    if wrong or len(dict(sampling.logit_bias)) < len(sampling.logit_bias):
        what = f"of {wrong[0]}" if wrong else "has an id twice"
        raise EngineError(f"sampling.logit_bias {what}", action=f"give ids below {vocabulary} and finite numbers")


def row_streams(
    prompts: Sequence[Sequence[int]], sampling: Sampling, *, first: int = 0
) -> list[list[np.random.Generator]]:
    """A stream per prompt and sample, keyed by the seed, the prompt's own tokens and the number of the sample: what
    else is in the batch does not matter. Equal prompts count their samples on, so they differ.

    Args:
        first: number of each prompt's first sample.
    """
    seen: dict[tuple[int, ...], int] = {}
    streams = []
    for prompt in prompts:
        key = tuple(int(token) for token in prompt)
        begin = seen.get(key, first)
        seen[key] = begin + sampling.n
        keys = [stream_key("sample", sampling.seed, key, number) for number in range(begin, begin + sampling.n)]
        streams.append([np.random.Generator(np.random.Philox(key)) for key in keys])
    return streams
