"""Each loss and its gradient against float64 loops that know the formulas, on every array library at hand."""

from __future__ import annotations

from functools import partial
from math import exp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, LossData
from finetooth_kit import parametrize_with_checks
from finetooth_policygradient import loss as module
from hypothesis import given
from hypothesis import strategies as st

CONTEXT: Any = SimpleNamespace()


@parametrize_with_checks("finetooth_policygradient.plugin")
def test_conforms(check: Any) -> None:
    check()


def token(name: str, p: float, q: float, a: float, options: dict[str, float]) -> tuple[float, float]:
    """Loss of one token and its derivative by p, as on paper."""
    ratio = exp(p - q)
    if name == "importance_sampling":
        return -ratio * a, -ratio * a
    if name == "dro":
        beta = options.get("beta", 0.05)
        return -(p * a - beta / 2 * (p - q) ** 2), -(a - beta * (p - q))
    low = options.get("clip_low_threshold", {"ppo": 0.8, "cispo": 0.0}[name])
    high = options.get("clip_high_threshold", {"ppo": 1.2, "cispo": 4.0}[name])
    held = min(max(ratio, low), high)
    if name == "cispo":
        return -held * p * a, -held * a
    if ratio * a <= held * a:  # the unclipped side is the smaller one
        return -ratio * a, -ratio * a
    return -held * a, 0.0


def case(seed: int, targets: int = 0) -> tuple[dict[str, Any], LossData]:
    """Random data; what the mask hides is poisoned."""
    rng = np.random.default_rng(seed)
    sequences, length = rng.integers(1, 4), rng.integers(1, 8)
    shape = (sequences, length, targets) if targets else (sequences, length)
    mask = rng.random((sequences, length)) < 0.7
    p = -rng.exponential(size=shape)
    q = p + rng.normal(size=shape)
    fields = {"weights": rng.choice([0.5, 1.0], size=shape), "old_logprobs": q, "advantages": rng.normal(size=shape)}
    p[~mask], q[~mask], fields["advantages"][~mask] = -np.inf, -1e9, np.nan
    data = LossData(mask, np.zeros(shape, np.int64), fields, {}, np.arange(sequences))
    return {"logprobs": p}, data


CHOICES = [
    ("importance_sampling", {}),
    ("ppo", {}),
    ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 2.0}),
    ("cispo", {}),
    ("cispo", {"clip_low_threshold": 0.7, "clip_high_threshold": 1.3}),
    ("dro", {}),
    ("dro", {"beta": 0.7}),
]


def build(name: str, options: dict[str, float]) -> Any:
    builder = getattr(module, f"build_{name}")
    model = {"ppo": module.PpoOptions, "cispo": module.CispoOptions, "dro": module.DroOptions}.get(name)
    return builder(model(**options) if model else None, CONTEXT)


def oracle(name: str, options: dict[str, float], outputs: Any, data: LossData) -> tuple[float, np.ndarray]:
    p, fields, total = outputs["logprobs"], data.fields, 0.0
    gradient = np.zeros_like(p)
    for place in np.ndindex(*p.shape):
        if data.mask[place[:2]]:
            loss, slope = token(name, p[place], fields["old_logprobs"][place], fields["advantages"][place], options)
            total += fields["weights"][place] * loss
            gradient[place] = fields["weights"][place] * slope
    return total, gradient


@pytest.mark.parametrize(("name", "options"), CHOICES)
@given(seed=st.integers(0, 10_000), targets=st.sampled_from([0, 2]))
def test_the_loss_is_that_of_the_formula(name: str, options: dict[str, float], seed: int, targets: int) -> None:
    outputs, data = case(seed, targets)
    part = build(name, options)(outputs, data, {}).contributions["policy"]
    assert part.per == "weights"
    assert float(part.total) == pytest.approx(oracle(name, options, outputs, data)[0], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "options"), CHOICES)
def test_the_gradient_is_that_of_the_formula(name: str, options: dict[str, float], dtype: str) -> None:
    import torch

    for seed in range(20):
        outputs, data = case(seed, targets=2 * (seed % 2))
        tensor = partial(torch.tensor, dtype=getattr(torch, dtype))
        p = tensor(outputs["logprobs"]).requires_grad_()
        fields = {key: tensor(values) for key, values in data.fields.items()}
        rectangle = LossData(torch.tensor(data.mask), torch.tensor(data.targets), fields, {}, torch.tensor(data.group))
        build(name, options)({"logprobs": p}, rectangle, {}).contributions["policy"].total.backward()
        wanted = oracle(name, options, outputs, data)[1]
        assert p.grad is not None
        np.testing.assert_allclose(p.grad.numpy(), wanted, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-6)


def test_every_branch_of_the_clip_is_among_the_cases() -> None:
    """Both sides of the ratio under both signs of the advantage, so that no oracle is tried on half its cases."""
    seen = set()
    for seed in range(20):
        outputs, data = case(seed)
        for place in zip(*np.nonzero(data.mask), strict=True):
            ratio = exp(outputs["logprobs"][place] - data.fields["old_logprobs"][place])
            seen.add((-1 if ratio < 0.8 else 1 if ratio > 1.2 else 0, data.fields["advantages"][place] > 0))
    assert len(seen) == 6


def test_a_missing_field_is_named() -> None:
    outputs, data = case(1)
    bare = LossData(data.mask, data.targets, {"weights": data.fields["weights"]}, {}, data.group)
    with pytest.raises(DataError, match="no field 'old_logprobs'"):
        build("ppo", {})(outputs, bare, {})


def test_bounds_stand_in_order() -> None:
    with pytest.raises(ValueError, match="clip_low_threshold is above"):
        module.PpoOptions(clip_low_threshold=1.3)
