"""Computes features, rewards and metrics from hidden states of a frozen network (arXiv:2603.12248).

Everything is float64 and without gradients: rewards are constants of the policy gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pooling = Literal["last_token", "mean_pooling", "completion_mean", "concat"]

QUARTERS = (0.25, 0.5, 0.75)
"""Positions of the states for `concat`, as shares of the distance from the first to the last."""
LEAST = 1e-6
"""Singular values below this share of the largest are taken for 0."""


def pooled(layers: Sequence[NDArray[Any]], pooling: Pooling, prompt: int) -> Floats:
    """(D',) features of one sequence. At each position the states of each layer are divided by their L2 norm and
    concatenated.

    Args:
        layers: of each depth (N, D).
        prompt: number of the prompt's positions among the N.
    """
    states = np.concatenate([_unit(np.asarray(of, dtype=np.float64)) for of in layers], axis=1)
    if pooling == "last_token":
        return np.asarray(states[-1])
    if pooling == "mean_pooling":
        return np.asarray(states.mean(axis=0))
    if pooling == "completion_mean":
        return np.asarray(states[prompt:].mean(axis=0))
    return np.concatenate([states[int(share * (len(states) - 1))] for share in QUARTERS])


def whitener(sampled: Floats) -> Floats:
    """The whitening map (D', R). Inner products of its R outputs equal those of W x: with U S V^T the singular value
    decomposition of the sampled features as columns, W = U S^-1 U^T, so that the second moment of W x over the samples
    is the identity on their span. R is the rank.

    Args:
        sampled: (n, D').
    """
    u, s, _ = np.linalg.svd(sampled.T, full_matrices=False)
    large = s > LEAST * s.max(initial=0.0)
    return np.asarray(u[:, large] / s[large])


def feature_rewards(sampled: Floats, reference: Floats, *, alignment: float, diversity: float) -> Floats:
    """(n,) rewards of a group (eq. 7): twice `alignment` times the cosine to the reference, minus twice `diversity`
    times the mean inner product with the others. A group of one has no others.

    Args:
        sampled: (n, D').
        reference: (D',).
    """
    rewards = 2.0 * alignment * cosines(sampled, reference)
    if len(sampled) > 1:
        rewards = rewards - 2.0 * diversity * likeness(sampled)
    return np.asarray(rewards)


def judged(
    groups: Sequence[Floats], references: Floats, *, alignment: float, diversity: float
) -> tuple[list[Floats], dict[str, float]]:
    """The rewards of each group, and the metrics `ebft/NAME`.

    Args:
        groups: of each (n, D').
        references: (G, D').
    """
    rewards: list[Floats] = []
    watched: dict[str, list[float]] = {"alignment": [], "diversity": [], "cfm_loss": [], "reward": []}
    for of, reference in zip(groups, references, strict=True):
        rewards.append(feature_rewards(of, reference, alignment=alignment, diversity=diversity))
        watched["alignment"] += cosines(of, reference).tolist()
        watched["diversity"] += likeness(of).tolist() if len(of) > 1 else []
        watched["cfm_loss"].append(cfm_loss(of, reference))
        watched["reward"] += rewards[-1].tolist()
    return rewards, {f"ebft/{name}": float(np.mean(values)) for name, values in watched.items() if values}


def cosines(sampled: Floats, reference: Floats) -> Floats:
    """Cosine of each sample to the reference, (n,); 0 if one of them is 0."""
    return np.asarray(_unit(sampled) @ _unit(reference[None])[0])


def likeness(sampled: Floats) -> Floats:
    """(n,) mean inner product of each sample with the n - 1 others."""
    products = sampled @ sampled.T
    return np.asarray((products.sum(axis=1) - np.diag(products)) / (len(sampled) - 1))


def cfm_loss(sampled: Floats, reference: Floats) -> float:
    """Squared distance from the mean of the samples to the reference (eq. 2)."""
    return float(np.square(sampled.mean(axis=0) - reference).sum())


def _unit(rows: Floats) -> Floats:
    """Rows divided by their L2 norm; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
