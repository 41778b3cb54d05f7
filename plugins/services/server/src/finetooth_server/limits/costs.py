"""Estimates a call's cost from its arguments before it is accepted: tokens, samples, memory, answer.

The estimates are upper bounds from the model's sizes; a call is refused at the first limit that it exceeds, and the
error names the limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import DataError, Sampling
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import cached_numbers
from finetooth_wire import wire

from finetooth_server.operations import ROWWISE, data_of, prompts_of
from finetooth_server.settings import Limits

FLOAT = 4
"""Bytes of a number in an answer."""

ENCODED = 2
"""Memory of an array in an answer, relative to its size: bytes, and base64 text in JSON."""

ROWS = 2**15
"""Most rows of a call: each takes time to be read and laid out, before others have their turn."""

LIKELIEST = 3 * 8
"""Bytes per token of the vocabulary in the search for the likeliest: three arrays in float64."""


STOPS = 64
"""Most stop texts."""

LONGEST_STOP = 1000
"""Characters of one."""

STOP_IDS = 4096
"""Most stop token ids."""


@dataclass(frozen=True)
class Cost:
    """The cost of a call.

    Attributes:
        tokens: positions in the model, with prompts and their longest completions.
        samples: completions.
        memory: peak bytes besides the model: keys and values, wide outputs, the answer.
    """

    tokens: int = 0
    samples: int = 0
    memory: int = 0

    def refusal(self, operation: str, limits: Limits) -> str:
        """The exceeded limit, in one line; empty if none."""
        if self.samples > limits.samples:
            return f"{operation}: {self.samples} samples in one call, {limits.samples} are allowed (ask for fewer)"
        if self.tokens > limits.tokens:
            return f"{operation}: {self.tokens} tokens in one call, {limits.tokens} are allowed (send fewer)"
        if self.memory > limits.memory:
            return (
                f"{operation}: it would take about {self.memory / 1e6:,.0f} MB, and {limits.memory / 1e6:,.0f} "
                "MB are allowed (send less at once, or ask for less)"
            )
        return ""


def cost_of(operation: str, arguments: Mapping[str, Any], facts: ModelFacts) -> Cost:
    """The cost of a call on a model.

    Raises:
        DataError: arguments that cannot be read.
    """
    if operation == "generate":
        sampling = wire.decode_sampling(arguments.get("sampling") or {})
        return cost_of_sampling(prompts_of(arguments), sampling, facts)
    if "data" not in arguments:
        return Cost()
    data = data_of(arguments)
    if len(data) > ROWS:
        raise DataError("data", f"{len(data)} rows in one call", action=f"send at most {ROWS}")
    tokens = sum(len(datum) for datum in data)
    targets = sum(datum.targets.size for datum in data)
    longest = max((len(datum) for datum in data), default=0)
    memory = ENCODED * FLOAT * 2 * targets  # log-probabilities and entropies
    for name in arguments.get("returns") or ():
        if not isinstance(name, str):
            raise DataError("returns", f"{name!r} cannot be an output", action="name outputs")
        if name.startswith(ROWWISE):
            width = facts.vocab_size if name.startswith("logits") else facts.hidden_size
            rows = _rows(arguments.get("positions"), tokens)
            memory += FLOAT * width * (tokens + ENCODED * rows)
    top = _whole(arguments.get("top_k") or 0, "top_k")
    if top:
        memory += _top(tokens, longest, top, facts)
    return Cost(tokens, 0, memory)


def cost_of_sampling(
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    facts: ModelFacts,
    *,
    prompt_logprobs: bool = False,
    top: int = 0,
    top_samples: int = 0,
    embedding: bool = False,
) -> Cost:
    """The cost of sampling prompts.

    Args:
        top: requested likeliest tokens at each place of a prompt, besides its own.
        top_samples: requested likeliest tokens at each place of a completion.
        embedding: the mean of the prompts' hidden states is requested.

    Raises:
        DataError: too many or too long stop texts.
    """
    check_stops(sampling)
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    samples = sampling.n * len(prompts)
    room = facts.max_positions or prompt_tokens + sampling.max_tokens
    written = sum(min(sampling.max_tokens, max(0, room - len(prompt))) for prompt in prompts) * sampling.n
    cached = prompt_tokens * sampling.n + written
    memory = cached * _cache(facts) + ENCODED * 2 * FLOAT * written
    if prompt_logprobs:
        memory += ENCODED * FLOAT * prompt_tokens
    if top:
        memory += _top(prompt_tokens, max(map(len, prompts), default=0), top, facts)
    if embedding:
        memory += 3 * FLOAT * prompt_tokens * facts.hidden_size  # as computed, and in float64 for the mean
    if top_samples:
        longest = max((min(room, len(prompt) + sampling.max_tokens) for prompt in prompts), default=0)
        memory += _top(written, longest, top_samples, facts)
    return Cost(prompt_tokens + samples * sampling.max_tokens, samples, memory)


def check_stops(sampling: Sampling) -> None:
    """Check stop texts and ids, which are searched at each token.

    Raises:
        DataError: there are too many texts or ids, or a text is empty or too long.
    """
    if len(sampling.stop) > STOPS or len(sampling.stop_ids or ()) > STOP_IDS:
        raise DataError("stop", f"{len(sampling.stop)} texts, {len(sampling.stop_ids or ())} ids",
                        action=f"send at most {STOPS} texts, {STOP_IDS} ids")  # fmt: skip
    lengths = [len(text) for text in sampling.stop]
    if lengths and not 0 < min(lengths) <= max(lengths) <= LONGEST_STOP:
        raise DataError("stop", f"a text of {min(lengths) and max(lengths)} characters",
                        action=f"send 1 to {LONGEST_STOP}")  # fmt: skip


def _cache(facts: ModelFacts) -> int:
    """Bytes of a token's keys and values in all layers, at two bytes per number."""
    return 2 * cached_numbers(facts)


def _top(tokens: int, longest: int, top: int, facts: ModelFacts) -> int:
    """Bytes for the `top` likeliest tokens at each position: one example's logits at a time, and the answer."""
    return LIKELIEST * longest * facts.vocab_size + ENCODED * (8 + FLOAT) * tokens * min(top, facts.vocab_size)


def _rows(positions: Any, tokens: int) -> int:
    """Rows of wide outputs that are returned."""
    if positions is None:
        return tokens
    return sum(len(rows) if isinstance(rows, Sequence) else tokens for rows in wire.sequence(positions, "positions"))


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(name, f"{value!r}", action="give a whole number from 0")
    return value
