"""Focal, DFT and smoothed cross entropy against loops in float64, and against torch's own where it has one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_crossentropy.variants import dft, focal, smoothed
from finetooth_hooks import LossData
from hypothesis import given
from hypothesis import strategies as st

VOCABULARY = 7


def case(seed: int) -> tuple[dict[str, Any], LossData]:
    """Random logits with the log-probabilities of random targets; what the mask hides is poisoned."""
    rng = np.random.default_rng(seed)
    sequences, length = rng.integers(1, 5), rng.integers(1, 9)
    mask = rng.random((sequences, length)) < 0.7
    logits = 3 * rng.normal(size=(sequences, length, VOCABULARY))
    targets = rng.integers(0, VOCABULARY, size=(sequences, length))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    logprobs = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    logits[~mask], logprobs[~mask] = np.nan, -np.inf
    fields = {"weights": rng.choice([0.0, 0.5, 1.0, 2.0], size=mask.shape)}
    return {"logprobs": logprobs, "logits": logits}, LossData(mask, targets, fields, {}, np.arange(sequences))


def places(data: LossData) -> Any:
    return (place for place in np.ndindex(*data.mask.shape) if data.mask[place])


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 2.0, 5.0]))
def test_focal_is_its_formula(seed: int, gamma: float) -> None:
    outputs, data = case(seed)
    wanted = 0.0
    for place in places(data):
        p = math.exp(outputs["logprobs"][place])
        wanted -= data.fields["weights"][place] * (1 - p) ** gamma * math.log(p)
    found = focal(outputs, data, {}, gamma=gamma).contributions["focal"]
    assert found.per == "weights" and float(found.total) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_a_target_is_certain(gamma: float) -> None:
    logprobs = torch.zeros(1, 1, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    data = LossData(mask, torch.zeros(1, 1, dtype=torch.int64), {"weights": torch.ones(1, 1)}, {}, torch.zeros(1))
    focal({"logprobs": logprobs}, data, {}, gamma=gamma).contributions["focal"].total.backward()
    assert logprobs.grad is not None and bool(torch.isfinite(logprobs.grad).all())


@given(st.integers(0, 10_000))
def test_dft_weighs_by_a_probability_that_is_held_constant(seed: int) -> None:
    outputs, data = case(seed)
    p = np.where(data.mask, np.exp(outputs["logprobs"]), 0.0)
    wanted = -sum(data.fields["weights"][i] * p[i] * outputs["logprobs"][i] for i in places(data))
    logprobs = torch.tensor(outputs["logprobs"], requires_grad=True)
    fields = {"weights": torch.tensor(data.fields["weights"])}
    tensors = LossData(torch.tensor(data.mask), torch.tensor(data.targets), fields, {}, torch.tensor(data.group))
    total = dft({"logprobs": logprobs}, tensors, {}).contributions["dft"].total
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    total.backward()
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad.numpy(), np.where(data.mask, -data.fields["weights"] * p, 0.0), rtol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 1e-4, 0.1]))
def test_smoothed_is_its_formula_and_torchs(seed: int, label_smoothing: float, z_loss: float) -> None:
    outputs, data = case(seed)
    wanted, squares = 0.0, 0.0
    for place in places(data):
        weight, logits = data.fields["weights"][place], outputs["logits"][place]
        target = torch.tensor(int(data.targets[place]))
        wanted += weight * float(
            torch.nn.functional.cross_entropy(torch.tensor(logits), target, label_smoothing=label_smoothing)
        )
        squares += weight * math.log(sum(math.exp(x) for x in logits)) ** 2
    found = smoothed(outputs, data, {}, label_smoothing=label_smoothing, z_loss=z_loss).contributions
    assert float(found["cross_entropy"].total) == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    if z_loss:
        assert found["z_loss"].weight == z_loss
        assert float(found["z_loss"].total) == pytest.approx(squares, rel=1e-9, abs=1e-9)
    else:
        assert "z_loss" not in found


def test_several_targets_a_position_share_its_weight() -> None:
    outputs, data = case(5)
    log_p = np.where(data.mask[..., None], np.random.default_rng(0).normal(size=(*data.mask.shape, 2)) - 3, -np.inf)
    several = LossData(data.mask, np.zeros(log_p.shape, dtype=np.int64), data.fields, {}, data.group)
    each = [float(focal({"logprobs": log_p[..., k]}, data, {}, gamma=2.0).contributions["focal"].total) for k in (0, 1)]
    both = focal({"logprobs": log_p}, several, {}, gamma=2.0).contributions["focal"].total
    assert float(both) == pytest.approx(sum(each), rel=1e-12)
    found = smoothed({**outputs, "logprobs": log_p}, several, {}, label_smoothing=0.1, z_loss=0.0)
    assert math.isfinite(float(found.contributions["cross_entropy"].total))
