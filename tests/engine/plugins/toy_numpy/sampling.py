"""Sampling with the toy's cache: the sum of embeddings so far is all it must remember."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from finetooth_hooks import Completion, Sampling
from finetooth_hooks.protocols import EngineRequest
from numpy.typing import NDArray

from toy_numpy.model import Toy


def _draw(logp: NDArray[np.float64], sampling: Sampling, random: np.random.Generator) -> int:
    if sampling.temperature == 0:
        return int(np.argmax(logp))
    scores = logp / sampling.temperature
    order = np.argsort(-scores, kind="stable")
    p = np.exp(scores[order] - scores[order[0]])
    p /= p.sum()
    kept = np.cumsum(p) - p < sampling.top_p
    if sampling.top_k:
        kept &= np.arange(len(p)) < sampling.top_k
    p = np.where(kept, p, 0.0)
    return int(order[np.searchsorted(np.cumsum(p), random.random() * p.sum(), side="right")])


def complete(
    model: Toy,
    prompt: Sequence[int],
    n: int,
    sampling: Sampling,
    request: EngineRequest,
    version: int,
    ask: Callable[[], None],
) -> Completion:
    """Sample number n for a prompt; `ask` is called before every token."""
    random = np.random.default_rng([sampling.seed, n, *prompt])
    stops = request.text.stop_ids if sampling.stop_ids is None else sampling.stop_ids
    E, W, H = (model.weight(name) for name in ("E", "W", "H"))
    seen, count, last = E[list(prompt)].sum(axis=0), len(prompt), prompt[-1]
    tokens: list[int] = []
    scores: list[float] = []
    text, stop = "", False
    while len(tokens) < sampling.max_tokens and not stop:
        ask()
        hidden = np.tanh(W @ (E[last] + seen / count) + model.base["b"])
        logits = H @ hidden + model.base["c"]
        logp = logits - logits.max()
        logp -= np.log(np.exp(logp).sum())
        last = _draw(logp, sampling, random)
        tokens.append(last)
        scores.append(float(logp[last]))
        seen, count = seen + E[last], count + 1
        stop = last in stops
        text = request.text.tokenizer.decode(tokens[:-1] if stop else tokens, skip_special=True)
        for ending in sampling.stop:
            if ending in text:
                text, stop = text[: text.index(ending)], True
    return Completion(tuple(tokens), tuple(scores), text, "stop" if stop else "length", version)
