"""Additional results of a sampling call: log-probabilities of the likeliest tokens, of named tokens, and of sampled
alternatives to the prompt's tokens; and the embedding of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetooth_hooks import DataError, Datum, Engine, EngineError, MediumChunk
from finetooth_hooks.sampling import ShownPrompt
from finetooth_wire import wire
from numpy.typing import NDArray

EMPTY = -99999.0
"""Log-probability of an empty cell, whose id is 0."""


TOP = "top_tokens", "top_logprobs"
"""Names of the likeliest tokens' ids and log-probabilities in a result."""


@dataclass(frozen=True)
class ScoreRequest:
    """The requested results, all optional.

    Attributes:
        prompt: log-probability of each token of the prompt.
        top_prompt, top_samples: likeliest tokens at each place of the prompt, and of the completions.
        alternatives: tokens to draw for each place of the prompt but the first, at the call's temperature.
        rows, ids: (M,) requested log-probabilities: of token `ids` after `rows + 1` tokens of the prompt; an id of -1
            gets 0.
        last: score only this many places at the prompt's end; 0: all.
        embedding: of the prompt.
    """

    prompt: bool = False
    top_prompt: int = 0
    top_samples: int = 0
    alternatives: int = 0
    rows: NDArray[np.int64] | None = None
    ids: NDArray[np.int64] | None = None
    last: int = 0
    embedding: bool = False

    def encoded(self) -> dict[str, Any]:
        """For the log."""
        entries: dict[str, Any] = {
            "prompt_logprobs": self.prompt,
            "top_k_prompt_logprobs": self.top_prompt,
            "top_k_sample_logprobs": self.top_samples,
            "alternatives": self.alternatives,
            "last": self.last,
            "embedding": self.embedding,
        }
        if self.rows is not None and self.ids is not None:
            entries["rows"], entries["ids"] = wire.encode_array(self.rows), wire.encode_array(self.ids)
        return {name: value for name, value in entries.items() if value}

    @property
    def about_prompt(self) -> bool:
        """Whether the call requests results of the prompt's places."""
        return bool(self.prompt or self.top_prompt or self.alternatives or self.rows is not None or self.embedding)

    @property
    def most(self) -> int:
        """Most tokens in the result for one place of the prompt."""
        cells = 0 if self.rows is None or not self.rows.size else int(np.bincount(self.rows).max())
        return max(self.top_prompt, self.alternatives, cells)


NOTHING = ScoreRequest()
"""Completions are enough."""


def decoded(arguments: Mapping[str, Any]) -> ScoreRequest:
    """What `ScoreRequest.encoded` wrote."""
    arrays = [arguments.get(name) for name in ("rows", "ids")]
    rows, ids = (None if array is None else wire.decode_array(array, "targets", dtype="int64") for array in arrays)
    numbers = ("top_k_prompt_logprobs", "top_k_sample_logprobs", "alternatives", "last")
    top_prompt, top_samples, alternatives, last = (int(arguments.get(name) or 0) for name in numbers)
    prompt, embedding = (bool(arguments.get(name)) for name in ("prompt_logprobs", "embedding"))
    return ScoreRequest(prompt, top_prompt, top_samples, alternatives, rows, ids, last, embedding)


def of_prompt(
    engine: Engine, prompt: Sequence[int], request: ScoreRequest, *, temperature: float, seed: int
) -> dict[str, Any]:
    """The part of a call's result on its prompt of N tokens.

    Args:
        temperature: at which alternatives are drawn; 0 takes the likeliest.
        seed: of the draws.

    Returns:
        `prompt_logprobs` (N,); `top_tokens` and `top_logprobs` (N, K), `EMPTY` at unscored places; `alternatives` with
        `tokens` and `logprobs` (N - 1, K); `targets` (M,); `embedding` (D,).

    Raises:
        DataError: a token that the model does not have.
        EngineError: the engine gives no hidden states.
    """
    fields: dict[str, Any] = {}
    if request.embedding:
        fields["embedding"] = wire.encode_array(embedding(engine, prompt))
    if request.prompt:
        fields["prompt_logprobs"] = wire.encode_array(
            _scored_last(prompt_logprobs(engine, prompt), request.last, np.nan)
        )
    if not (request.top_prompt or request.alternatives or request.rows is not None):
        return fields
    nexts = next_logprobs(engine, prompt)
    if request.top_prompt:
        likely: tuple[NDArray[Any], ...] = likeliest(nexts, request.top_prompt)
        for name, values, empty in zip(TOP, likely, (0, EMPTY), strict=True):
            first = np.full((1, request.top_prompt), empty, values.dtype)
            fields[name] = wire.encode_array(_scored_last(np.concatenate([first, values]), request.last, empty))
    if request.alternatives:
        ids = draw_tokens(nexts, request.alternatives, temperature, np.random.default_rng(seed % 2**63))
        picked = np.take_along_axis(nexts, ids, -1).astype(np.float32)
        fields["alternatives"] = {"tokens": wire.encode_array(ids), "logprobs": wire.encode_array(picked)}
    if request.rows is not None and request.ids is not None:
        if request.ids.size and (request.ids.max() >= nexts.shape[1] or request.ids.min() < -1):
            raise DataError("target_prompt_logprobs", f"a token outside 0 to {nexts.shape[1] - 1}", action="send ids")
        values = np.where(request.ids < 0, 0.0, nexts[request.rows, np.maximum(request.ids, 0)])
        fields["targets"] = wire.encode_array(values.astype(np.float32))
    return fields


def of_completion(engine: Engine, prompt: Sequence[int], tokens: Sequence[int], top: int) -> dict[str, Any]:
    """The `top` likeliest tokens at each of a completion's T tokens: `top_tokens` and `top_logprobs`, (T, top)."""
    media = prompt.media if isinstance(prompt, ShownPrompt) else ()
    nexts = next_logprobs(engine, [*prompt, *tokens], media)[len(prompt) - 1 :]
    likely: tuple[NDArray[Any], ...] = likeliest(nexts, top)
    return {name: wire.encode_array(values) for name, values in zip(TOP, likely, strict=True)}


def next_logprobs(
    engine: Engine, tokens: Sequence[int], media: Sequence[tuple[int, MediumChunk]] = ()
) -> NDArray[np.float64]:
    """(N - 1, V) log-probabilities of the token after each of N tokens but the last.

    Args:
        media: among the tokens, as in `Datum.from_tokens`.
    """
    if len(tokens) < 2:
        return np.zeros((0, 1))
    result = engine.forward([Datum.from_tokens(list(tokens), media=media)], returns=("logits",), train=False)
    logits = np.asarray(result.outputs[0]["logits"], dtype=np.float64)
    peak = logits.max(-1, keepdims=True)
    logprobs: NDArray[np.float64] = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    return logprobs


def embedding(engine: Engine, prompt: Sequence[int]) -> NDArray[np.float32]:
    """(D,) the mean of the last hidden states of a prompt's tokens, of length 1.

    Raises:
        EngineError: the engine gives no hidden states.
    """
    data = [Datum.from_tokens([*prompt, prompt[-1]])]  # the last token of an example is only a target
    result = engine.forward(data, returns=("hidden",), train=False)
    if not result.outputs or "hidden" not in result.outputs[0]:
        raise EngineError("the engine of this model gives no hidden states", action="serve it with another backend")
    mean = np.asarray(result.outputs[0]["hidden"], dtype=np.float64)[: len(prompt)].mean(0)
    unit: NDArray[np.float32] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return unit


def prompt_logprobs(engine: Engine, prompt: Sequence[int]) -> NDArray[np.float32]:
    """(N,) log-probability of each token of a prompt after those before it; NaN for the first."""
    if len(prompt) < 2:
        return np.full(len(prompt), np.nan, np.float32)
    scores = engine.logprobs([Datum.from_tokens(list(prompt))])[0]
    return np.concatenate([[np.nan], scores]).astype(np.float32)


def likeliest(nexts: NDArray[np.float64], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(N, top) ids and log-probabilities of the likeliest tokens, of equal ones the lower id first; missing ones are
    empty."""
    filled = min(top, nexts.shape[1])
    ids = np.zeros((len(nexts), top), np.int64)
    scores = np.full((len(nexts), top), EMPTY, np.float32)
    if len(nexts):
        ids[:, :filled] = np.argsort(-nexts, axis=-1, kind="stable")[:, :filled]
        scores[:, :filled] = np.take_along_axis(nexts, ids[:, :filled], -1)
    return ids, scores


def draw_tokens(
    nexts: NDArray[np.float64], count: int, temperature: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """(N, count) tokens from p^(1 / temperature), independent of one another."""
    if temperature == 0:
        best: NDArray[np.int64] = nexts.argmax(-1, keepdims=True).astype(np.int64)
        return np.repeat(best, count, axis=1)
    scaled = nexts / temperature
    p = np.exp(scaled - scaled.max(-1, keepdims=True, initial=-np.inf))
    upto = np.cumsum(p, axis=-1)
    ends = generator.random((len(nexts), count)) * upto[:, -1:]
    rows = [np.searchsorted(row, at, side="right") for row, at in zip(upto, ends, strict=True)]
    tokens: NDArray[np.int64] = np.array(rows, np.int64).reshape(len(nexts), count)
    return np.minimum(tokens, np.int64(nexts.shape[1] - 1))


def _scored_last(values: NDArray[Any], last: int, empty: float) -> NDArray[Any]:
    """The values with only the last places kept, the others empty."""
    if last:
        values[: len(values) - last] = empty
    return values
