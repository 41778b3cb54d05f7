"""Advantages of tokens from a critic: generalised advantage estimation, whitening, and the reward of each token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def token_rewards(score: float, log_ratios: Floats, kl_coef: float) -> Floats:
    """(T,) rewards of the tokens of an answer: each token pays for its distance from the reference, and the last one
    gets the score (Ziegler et al., 2019, arXiv:1909.08593, eq. 2, spread over the tokens).

    Args:
        score: of the answer.
        log_ratios: (T,) log policy - log reference.
        kl_coef: cost per nat.
    """
    rewards = -kl_coef * np.asarray(log_ratios, dtype=np.float64)
    rewards[-1] += score
    return rewards


def advantages_and_returns(
    rewards: Floats, values: Floats, *, discount: float, smoothing: float
) -> tuple[Floats, Floats]:
    """GAE (Schulman et al., 2015, arXiv:1506.02438, eq. 16): with delta_t = r_t + discount V_{t+1} - V_t, the advantage
    is the sum over l of (discount smoothing)^l delta_{t+l}. Nothing follows the last token.

    Args:
        rewards: (T,)
        values: (T,) the critic's value before each token.

    Returns:
        (T,) advantages, and (T,) returns: advantages plus values.
    """
    following = np.append(values[1:], 0.0)
    deltas = rewards + discount * following - values
    advantages, sofar = np.zeros_like(deltas), 0.0
    for t in range(len(deltas) - 1, -1, -1):
        sofar = deltas[t] + discount * smoothing * sofar
        advantages[t] = sofar
    return advantages, advantages + values


def whitened(parts: Sequence[Floats], *, shift: bool = True) -> list[Floats]:
    """All numbers of all parts together, scaled to variance 1, and with `shift` to mean 0.

    The variance is that of a sample (N - 1), and 1e-8 is added to it, as in other tools.
    """
    if not parts:
        return []
    values = np.concatenate(parts)
    mean = values.mean()
    scale = 1.0 / np.sqrt((values.var(ddof=1) if len(values) > 1 else 0.0) + 1e-8)
    return [(part - mean) * scale + (0.0 if shift else mean) for part in parts]
