"""DPO and BCO against their formulas, sequence by sequence in plain Python, and the tape's own gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core  # noqa: F401  (the losses' conformance would skip MLX without a word if it were missing)
import numpy as np
import pytest
import torch
from finetooth_hooks import LossData, LossFn
from finetooth_hooks import arrays as xp
from finetooth_kit import FakeContext, entries_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_numpy import tape

tape.join()
ENTRIES = entries_of("proof_losses.plugin")


def build(name: str, **options: Any) -> LossFn:
    return FakeContext(Path(), entries=ENTRIES).loss({"name": name, **options}).fn


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def case(seed: int, pairs: int) -> tuple[dict[str, Any], LossData]:
    random = np.random.default_rng(seed)
    shape = (2 * pairs, 4)
    mask = random.random(shape) < 0.7
    mask[:, 0] = True
    outputs = {name: np.where(mask, -3 * random.random(shape), 0.0) for name in ("logprobs", "logprobs@reference")}
    data = LossData(
        mask,
        np.zeros(shape, dtype=np.int64),
        {"weights": mask.astype(float)},
        {"label": np.array([1.0, 0.0] * pairs)},
        np.arange(2 * pairs) // 2,
    )
    return outputs, data


def rewards(outputs: dict[str, Any], beta: float) -> list[float]:
    policy, reference = outputs["logprobs"], outputs["logprobs@reference"]
    return [beta * (math.fsum(p) - math.fsum(r)) for p, r in zip(policy, reference, strict=True)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.floats(0.01, 5), st.floats(0, 0.4))
def test_dpo_is_equation_seven(seed: int, pairs: int, beta: float, smoothing: float) -> None:
    outputs, data = case(seed, pairs)
    r = rewards(outputs, beta)
    margins = [r[i] - r[i + 1] for i in range(0, 2 * pairs, 2)]
    wanted = sum(-(1 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m) for m in margins)
    result = build("proof_dpo", beta=beta, label_smoothing=smoothing)(outputs, data, {})
    assert float(result.contributions["dpo"].total) == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    assert result.contributions["dpo"].per == "groups"
    accuracy = result.metrics["rewards/accuracy"]
    assert float(accuracy.total) / float(accuracy.count) == pytest.approx(sum(m > 0 for m in margins) / pairs)


def test_dpo_at_the_reference_is_log_two_and_its_slope_is_half_beta() -> None:
    outputs, data = case(0, 3)
    outputs["logprobs@reference"] = outputs["logprobs"]
    loss = build("proof_dpo", beta=0.3)
    assert float(loss(outputs, data, {}).contributions["dpo"].total) == pytest.approx(3 * math.log(2))
    leaf = torch.tensor(outputs["logprobs"], requires_grad=True)
    given_ = {"logprobs": leaf, "logprobs@reference": torch.tensor(outputs["logprobs"])}
    loss(given_, data, {}).contributions["dpo"].total.backward()
    assert leaf.grad is not None
    signs = np.array([-1.0, 1.0] * 3)[:, None]
    np.testing.assert_allclose(leaf.grad.numpy(), np.broadcast_to(signs * 0.15, leaf.shape))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.floats(0.01, 5), st.floats(0, 0.99))
def test_bco_follows_its_moving_mean(seed: int, pairs: int, beta: float, decay: float) -> None:
    loss = build("proof_bco", beta=beta, decay=decay)
    state: Any = {}
    delta = None
    for step in range(3):
        outputs, data = case(seed + step, pairs)
        r = rewards(outputs, beta)
        middle = 0.5 * (sum(r[0::2]) / pairs + sum(r[1::2]) / pairs)
        delta = middle if delta is None else decay * delta + (1 - decay) * middle
        wanted = sum(-log_sigmoid(r[i] - delta if i % 2 == 0 else delta - r[i]) for i in range(2 * pairs))
        result = loss(outputs, data, state)
        state = result.state
        assert float(result.contributions["bco"].total) == pytest.approx(wanted, rel=1e-10, abs=1e-12)
        assert state == {"delta": pytest.approx(delta, rel=1e-10, abs=1e-12)}


FUNCTIONS = {
    "elementwise": lambda a, m, i: xp.log_sigmoid(a) + xp.softplus(a) * xp.tanh(a) + xp.expm1(a) + xp.sigmoid(a),
    "bounds": lambda a, m, i: xp.clip(a, -0.5, 0.5) + xp.maximum(a, 0.1) * xp.minimum(a, 0.3) + xp.relu(a),
    "where": lambda a, m, i: xp.where(m, a, 0.1) * xp.astype_like(m, a) + xp.full_like(a, 0.2) + xp.zeros_like(a),
    "sort": lambda a, m, i: xp.sort(a, axis=0, ascending=False) * xp.sort(a),
    "take": lambda a, m, i: xp.take(a, i, axis=1) * xp.take_along_axis(a, i, axis=1),
    "segments": lambda a, m, i: xp.segment_sum(xp.square(a), np.array([1, 1, 0]), 3),
    "axes": lambda a, m, i: xp.logsumexp(a, axis=1) + xp.mean(a) * xp.max(a, axis=1) - xp.min(a),
    "shapes": lambda a, m, i: xp.concat([a, xp.square(a)], axis=1) * xp.reshape(xp.stack([a, a], axis=1), (3, -1)),
    "stopped": lambda a, m, i: a * xp.stop_gradient(a),
    "sums": lambda a, m, i: xp.cumsum(a, axis=0) * xp.sum(a, axis=1, keepdims=True) + xp.ones_like(a),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tape_and_torch_have_the_same_gradients(name: str) -> None:
    random = np.random.default_rng(3)
    x, mask, ids = random.normal(size=(3, 3)), random.random((3, 3)) < 0.5, random.integers(0, 3, size=(3, 3))
    function = FUNCTIONS[name]
    value, (grad,) = tape.gradients(lambda a: xp.sum(xp.square(function(a, mask, ids))), [x])
    leaf = torch.tensor(x, requires_grad=True)
    total = xp.sum(xp.square(function(leaf, torch.tensor(mask), torch.tensor(ids))))
    total.backward()
    assert leaf.grad is not None
    assert value == pytest.approx(total.item(), rel=1e-12)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-10, atol=1e-12)
