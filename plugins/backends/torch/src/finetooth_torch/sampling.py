"""Choosing tokens from logits, every row with a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from finetooth_hooks import Sampling
from torch import Tensor

from finetooth_torch.randomness import stream_key


def row_streams(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[np.random.Generator]]:
    """A stream per prompt and sample, keyed by the seed, the prompt's own tokens and the number of the sample: what
    else is in the batch does not matter. Equal prompts count their samples on, so they differ."""
    seen: dict[tuple[int, ...], int] = {}
    streams = []
    for prompt in prompts:
        key = tuple(int(token) for token in prompt)
        first = seen.get(key, 0)
        seen[key] = first + sampling.n
        streams.append(
            [
                np.random.Generator(np.random.Philox(stream_key("sample", sampling.seed, key, number)))
                for number in range(first, first + sampling.n)
            ]
        )
    return streams


def choose(logits: Tensor, sampling: Sampling, streams: Sequence[np.random.Generator]) -> Tensor:
    """(B,) int64: the next token of each row.

    Temperature first, then the `top_k` most likely, then the smallest set of the most likely whose probability reaches
    `top_p` (Holtzman et al., 2020, arXiv:1904.09751); one uniform number per row picks by the inverse of the
    cumulative distribution.

    Args:
        logits: (B, V) of the unscaled model.
        streams: one per row; each advances by one number unless sampling is greedy.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    draws = torch.tensor([stream.random() for stream in streams], dtype=torch.float64, device=logits.device)
    if sampling.top_k == 0 and sampling.top_p >= 1:
        weights = torch.softmax(logits.double() / sampling.temperature, -1)
        return _invert(weights, draws)
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)
    weights = torch.softmax(ordered / sampling.temperature, -1)
    if 0 < sampling.top_k < weights.shape[-1]:
        weights[:, sampling.top_k :] = 0
        weights = weights / weights.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        before = weights.cumsum(-1) - weights  # the most likely token always stays
        weights = torch.where(before < sampling.top_p, weights, 0.0)
    return order.gather(-1, _invert(weights, draws).unsqueeze(-1)).squeeze(-1)


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    cumulative = weights.cumsum(-1)
    # a draw in [0, 1) scaled by the row's own total cannot fall behind the last token that has weight
    points = draws.unsqueeze(-1) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, points, right=True).squeeze(-1)
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(chosen, last)
