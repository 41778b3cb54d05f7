"""Several losses as one: the sum of what each gives alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import LossData, LossResult, LossSpec
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, Metric
from finetooth_kit.losses import AGAINST_REFERENCE, CENTRED, PAIR_MARGIN, WEIGHTED_NLL
from finetooth_toolbox.combined_losses import combined, with_known_role


def case() -> tuple[dict[str, Any], LossData]:
    random = np.random.default_rng(0)
    mask = random.random((4, 5)) < 0.8
    outputs = {name: np.where(mask, -random.random((4, 5)), 0.0) for name in ("logprobs", "logprobs@reference")}
    fields = {"weights": mask.astype(float), "logprobs@reference": outputs["logprobs@reference"]}
    return outputs, LossData(mask, np.zeros((4, 5), np.int64), fields, {}, np.array([0, 0, 1, 1]))


def objective(result: LossResult) -> float:
    return sum(part.weight * float(part.total) for part in result.contributions.values())


def test_it_is_the_weighted_sum_with_the_needs_of_all() -> None:
    outputs, data = case()
    parts = [(WEIGHTED_NLL, 0.5), (PAIR_MARGIN, 2.0), (AGAINST_REFERENCE, 1.0)]
    spec = combined(parts)
    wanted = sum(weight * objective(each.fn(outputs, data, {})) for each, weight in parts)
    assert objective(spec.fn(outputs, data, {})) == pytest.approx(wanted, rel=1e-12)
    nested = combined([(spec, 3.0), (WEIGHTED_NLL, 1.0)])
    assert objective(nested.fn(outputs, data, {})) == pytest.approx(
        3 * wanted + objective(WEIGHTED_NLL.fn(outputs, data, {}))
    )
    assert (spec.together, spec.needs) == ("group", {"logprobs", "logprobs@reference"})
    assert combined([(WEIGHTED_NLL, 1.0)]) is WEIGHTED_NLL


def test_a_sum_is_in_proportion_to_a_field_if_all_its_parts_are() -> None:
    weights, other = (replace(WEIGHTED_NLL, proportional_to=name) for name in ("weights", "other"))
    assert combined([(weights, 1.0), (weights, 0.5)]).proportional_to == "weights"
    assert combined([(weights, 1.0), (other, 1.0)]).proportional_to is None
    assert combined([(weights, 1.0), (PAIR_MARGIN, 1.0)]).proportional_to is None


def test_each_loss_has_its_own_state() -> None:
    outputs, data = case()
    spec = combined([(CENTRED, 1.0), (WEIGHTED_NLL, 1.0), (CENTRED, 3.0)])
    assert spec.together == "step"
    state: Any = {}
    alone: Any = {}
    for _ in range(3):
        state = spec.fn(outputs, data, state).state
        alone = CENTRED.fn(outputs, data, alone).state
    assert state == {f"{place}/{name}": value for place in (0, 2) for name, value in alone.items()}


def test_components_of_one_name_are_told_apart_and_the_first_metric_stays() -> None:
    def make(value: float) -> LossSpec:
        return LossSpec(
            f"x{value}",
            lambda o, d, s: LossResult({"x": Contribution(xp.sum(o["logprobs"]) * value)}, {"m": Metric(value)}),
        )

    outputs, data = case()
    result = combined([(make(1.0), 1.0), (make(2.0), 1.0), (make(3.0), 0.5)]).fn(outputs, data, {})
    assert list(result.contributions) == ["x", "x#2", "x#3"]
    assert result.contributions["x#3"].weight == 0.5
    assert result.metrics["m"].total == 1.0


def test_a_known_role_is_read_from_the_data() -> None:
    outputs, data = case()
    spec = with_known_role(AGAINST_REFERENCE, "reference")
    assert spec.roles == frozenset()
    assert objective(spec.fn({"logprobs": outputs["logprobs"]}, data, {})) == objective(
        AGAINST_REFERENCE.fn(outputs, data, {})
    )
