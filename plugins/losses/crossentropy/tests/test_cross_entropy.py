"""The loss against a float64 NumPy oracle written as loops, on every array library at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetooth_crossentropy import plugin
from finetooth_crossentropy.loss import cross_entropy
from finetooth_hooks import LossData
from finetooth_kit import parametrize_with_checks
from hypothesis import given
from hypothesis import strategies as st


@parametrize_with_checks("finetooth_crossentropy.plugin")
def test_conforms(check: Any) -> None:
    check()


def test_it_says_what_its_gradient_is_in_proportion_to() -> None:
    """Whether it is so is tried by the kit, above."""
    entry = next(iter(plugin.ft_losses()))
    assert entry.proportional_to == "weights"


def case(seed: int, targets: int = 0) -> tuple[dict[str, Any], LossData]:
    """Random log-probabilities, weights and mask; what the mask hides is poisoned."""
    rng = np.random.default_rng(seed)
    sequences, length = rng.integers(1, 5), rng.integers(1, 9)
    shape = (sequences, length, targets) if targets else (sequences, length)
    mask = rng.random((sequences, length)) < 0.7
    logprobs = -rng.exponential(size=shape)
    logprobs[~mask] = -np.inf
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], size=shape)
    data = LossData(
        mask=mask,
        targets=np.zeros(shape, dtype=np.int64),
        fields={"weights": weights},
        scalars={},
        group=np.arange(sequences),
    )
    return {"logprobs": logprobs}, data


def oracle(outputs: dict[str, Any], data: LossData) -> float:
    total = 0.0
    for place in np.ndindex(*outputs["logprobs"].shape):
        if data.mask[place[:2]]:
            total -= float(data.fields["weights"][place]) * float(outputs["logprobs"][place])
    return total


@given(st.integers(0, 10_000), st.sampled_from([0, 1, 3]))
def test_is_the_weighted_sum_of_negative_log_probabilities(seed: int, targets: int) -> None:
    outputs, data = case(seed, targets)
    contribution = cross_entropy(outputs, data, {}).contributions["cross_entropy"]
    assert contribution.per == "weights"
    assert float(contribution.total) == pytest.approx(oracle(outputs, data), rel=1e-12, abs=1e-12)


def test_one_weight_a_position_holds_for_all_its_targets() -> None:
    outputs, data = case(3, targets=2)
    shared = data.fields["weights"][..., 0]
    spread = np.repeat(shared[..., None], 2, axis=2)
    one = cross_entropy(outputs, LossData(data.mask, data.targets, {"weights": shared}, {}, data.group), {})
    many = cross_entropy(outputs, LossData(data.mask, data.targets, {"weights": spread}, {}, data.group), {})
    assert float(one.contributions["cross_entropy"].total) == float(many.contributions["cross_entropy"].total)


def test_gradient_is_minus_the_weight_and_zero_where_masked() -> None:
    import torch

    outputs, data = case(11)
    logprobs = torch.tensor(outputs["logprobs"], requires_grad=True)
    fields = {"weights": torch.tensor(data.fields["weights"])}
    rectangle = LossData(torch.tensor(data.mask), torch.tensor(data.targets), fields, {}, torch.tensor(data.group))
    cross_entropy({"logprobs": logprobs}, rectangle, {}).contributions["cross_entropy"].total.backward()
    assert logprobs.grad is not None
    np.testing.assert_array_equal(logprobs.grad.numpy(), np.where(data.mask, -data.fields["weights"], 0.0))
