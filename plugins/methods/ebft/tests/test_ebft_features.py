"""Features and rewards against the paper's equations, written out number by number in float64 (arXiv:2603.12248)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_ebft.features import cfm_loss, cosines, feature_rewards, likeness, pooled, whitener
from finetooth_ebft.healthy import healthy
from finetooth_ebft.method import EbftOptions
from finetooth_hooks import StepReport
from finetooth_rollouts.health import STEPS, Health

RANDOM = np.random.default_rng(11)
LAYERS = [RANDOM.normal(size=(9, 5)) * 10**depth for depth in range(3)]
"""States of three depths, of very different lengths."""


def unit(vector: Any) -> list[float]:
    length = math.sqrt(sum(float(x) ** 2 for x in vector))
    return [float(x) / length for x in vector]


def state(position: int) -> list[float]:
    return [x for layer in LAYERS for x in unit(layer[position])]


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("last_token", state(8)),
        ("mean_pooling", mean([state(i) for i in range(9)])),
        ("completion_mean", mean([state(i) for i in range(4, 9)])),
        ("concat", [*state(2), *state(4), *state(6)]),
    ],
)
def test_poolings(pooling: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(pooled(LAYERS, pooling, 4), expected, rtol=1e-12)


def reward(samples: Any, reference: Any, j: int, alignment: float, diversity: float) -> float:
    """Eq. 7: 2 a cos(phi_j, phi) - 2 d / (n - 1) sum over k != j of phi_j . phi_k."""
    cosine = sum(a * b for a, b in zip(unit(samples[j]), unit(reference), strict=True))
    found = 2 * alignment * cosine
    if len(samples) > 1:
        others = [sum(a * b for a, b in zip(samples[j], of, strict=True)) for k, of in enumerate(samples) if k != j]
        found -= 2 * diversity / (len(samples) - 1) * sum(others)
    return found


@pytest.mark.parametrize("n", [1, 2, 4, 7])
@pytest.mark.parametrize(("alignment", "diversity"), [(1.0, 1.0), (0.5, 0.0), (0.0, 2.0)])
def test_rewards_are_equation_7(n: int, alignment: float, diversity: float) -> None:
    samples, reference = RANDOM.normal(size=(n, 6)), RANDOM.normal(size=6)
    found = feature_rewards(samples, reference, alignment=alignment, diversity=diversity)
    expected = [reward(samples, reference, j, alignment, diversity) for j in range(n)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    distance = sum((x - y) ** 2 for x, y in zip(mean(samples.tolist()), reference, strict=True))
    assert cfm_loss(samples, reference) == pytest.approx(distance, rel=1e-12)


def test_identical_samples_are_the_most_alike() -> None:
    """Of unit length, none are more alike than equal ones; opposite ones the least."""
    one = np.array(unit(RANDOM.normal(size=6)))
    assert likeness(np.stack([one] * 4)) == pytest.approx(np.ones(4))
    assert likeness(np.stack([one, -one])) == pytest.approx(-np.ones(2))
    others = RANDOM.normal(size=(4, 6))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert (likeness(others) < 1).all()


@pytest.mark.parametrize(("n", "width"), [(20, 6), (4, 9), (6, 6)])
def test_whitened_second_moment_is_the_identity(n: int, width: int) -> None:
    """Inner products are those of W x, W = (Phi^T Phi)^(-1/2) on the samples' span."""
    samples, other = RANDOM.normal(size=(n, width)) * np.arange(1, width + 1), RANDOM.normal(size=width)
    white = samples @ whitener(samples)
    moment = white.T @ white
    np.testing.assert_allclose(moment, np.eye(min(n, width)), atol=1e-9)
    values, vectors = np.linalg.eigh(samples.T @ samples)
    kept = values > 1e-9 * values.max()
    w = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    np.testing.assert_allclose(white @ white.T, (samples @ w) @ (samples @ w).T, atol=1e-9)
    mapped = other @ whitener(samples)
    np.testing.assert_allclose(white @ mapped, samples @ w @ (w @ other), atol=1e-9)
    np.testing.assert_allclose(cosines(white, mapped), cosines(samples @ w, w @ other), atol=1e-9)


def test_directions_without_samples_are_dropped() -> None:
    samples = np.array([[1.0, 0.0, 1e-9], [0.0, 2.0, 0.0]])
    assert whitener(samples).shape == (3, 2)
    assert cosines(np.zeros((1, 3)), np.ones(3)) == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "strided"}, "set method.name to it, without mode"),
        ({"num_generations": 1, "advantage_estimator": "rloo"}, "set advantage_estimator to reinforce"),
        ({"dynamic_sampling": True}, "dynamic_sampling needs the rewards before"),
        ({"environment": "single"}, "set it to conversation"),
        ({"alignment_coef": 0.0, "diversity_coef": 0.0}, "nothing is rewarded"),
        ({"partial_rollouts": 4, "prefetch": 1}, "adaptive_max_tokens bounds whole answers"),
        ({"ce_coef": 0.1, "top_p": 0.9}, "leave top_p"),
        ({"feature_layers": [1.5]}, "less than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EbftOptions(**options)


def test_one_answer_to_a_prompt_has_no_others() -> None:
    assert EbftOptions(num_generations=1).advantage_estimator == "reinforce"
    assert EbftOptions().advantage_estimator == "rloo"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ebft/alignment", 0.05, "raise method.ce_coef"),
        ("ebft/diversity", 2.9, "raise method.diversity_coef"),
        ("ebft/cfm_loss", 120.0, "training is unstable"),
        ("ebft/reward", -1.0, "lower method.diversity_coef"),
        ("ebft/advantages_std", 0.0, "no answer is better"),
        ("kl", 3.0, "raise method.beta"),
        ("reward", -0.5, ""),
    ],
)
def test_what_leaves_its_range_is_said(name: str, value: float, words: str) -> None:
    """A reward below 0 is no fault of features, as it is of a reward that counts right answers."""
    notes: list[str] = []
    context: Any = SimpleNamespace(note=lambda text, topic: notes.append(text))
    health = Health(context, healthy([0.25, 0.5, 0.75], "last_token", whitening=False))
    for step in range(STEPS):
        health.watch(StepReport(step, 0.0, 0.0, 1, 1, 1, 1e-4, 0.5, metrics={name: value}))
    assert (len(notes), words in "".join(notes)) == (bool(words), True)
    ranges = healthy([0.5, 0.75], "concat", whitening=True)
    assert ranges["ebft/diversity"].high == 1.0
