"""A loss computed from given log-probabilities: its value, its gradient, its normalizers and its state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Contribution, DataError, Datum, EngineError, LossResult, LossSpec, Metric, NotFinite
from finetooth_remotebackend.local_loss import evaluate


def weighted(outputs: Any, data: Any, state: Any) -> LossResult:
    """-sum(w p) over weights, and half the sum of p^2 by tokens."""
    p, w, mask = outputs["logprobs"], data.fields["weights"], data.mask
    return LossResult(
        {"nll": Contribution(-(w * p).sum()), "square": Contribution((p * p * mask).sum() / 2, "tokens", weight=0.25)},
        {"worst": Metric(p.min(), reduce="min"), "mean": Metric(p.sum(), mask.sum())},
        state,
    )


def rows(seed: int = 0) -> tuple[list[Datum], list[np.ndarray]]:
    """Three rows of other lengths, with weights of which some are 0, and log-probabilities."""
    rng = np.random.default_rng(seed)
    data = [
        Datum.from_tokens(rng.integers(3, 99, size=n), rng.choice([0.0, 0.5, 2.0], size=n), id=f"row {n}")
        for n in (4, 9, 6)
    ]
    return data, [np.where(d.mask, -rng.exponential(size=len(d)), 0.0).astype(np.float32) for d in data]


def test_value_and_gradient_are_those_of_the_formula() -> None:
    data, logprobs = rows()
    found = evaluate(LossSpec("test:weighted", weighted), data, {"logprobs": logprobs})
    weights = [d.fields["weights"].astype(np.float64) for d in data]
    total, count = sum(w.sum() for w in weights), sum(d.mask.sum() for d in data)
    p = [one.astype(np.float64) for one in logprobs]
    nll = -sum((w * one).sum() for w, one in zip(weights, p, strict=True)) / total
    square = sum((one**2).sum() for one in p) / 2 / count
    assert found.totals.components == pytest.approx({"nll": nll, "square": square}, rel=1e-6)
    assert found.totals.loss == pytest.approx(nll + 0.25 * square, rel=1e-6)
    for grad, w, one in zip(found.grads, weights, p, strict=True):
        np.testing.assert_allclose(grad, -w / total + 0.25 * one / count, rtol=1e-5, atol=1e-8)
        assert grad.dtype == np.float32
    assert found.totals.metrics == pytest.approx({"worst": min(map(np.min, p)), "mean": sum(map(np.sum, p)) / count})


def test_a_step_in_two_calls_gives_the_gradient_of_one() -> None:
    data, logprobs = rows()
    spec = LossSpec("test:weighted", weighted)
    whole = evaluate(spec, data, {"logprobs": logprobs})
    counts = {
        "weights": sum(float(d.fields["weights"].sum()) for d in data),
        "tokens": float(sum(d.mask.sum() for d in data)),
    }
    parts = [evaluate(spec, data[a:b], {"logprobs": logprobs[a:b]}, counts=counts) for a, b in ((0, 2), (2, 3))]
    for a, b in zip(whole.grads, [grad for part in parts for grad in part.grads], strict=True):
        np.testing.assert_array_equal(a, b)
    assert sum(part.totals.loss for part in parts) == pytest.approx(whole.totals.loss, rel=1e-6)
    with pytest.raises(EngineError, match="'tokens', which the normalizer given does not hold"):
        evaluate(spec, data, {"logprobs": logprobs}, counts={"weights": 1.0})


def test_groups_and_scalars_reach_the_loss() -> None:
    def pairs(outputs: Any, data: Any, state: Any) -> LossResult:
        assert data.group.tolist() == [0, 0, 1] and data.scalars["label"].tolist() == [1.0, 0.0, 1.0]
        return LossResult({"x": Contribution(outputs["logprobs@reference"].sum() * 0 + 6.0, "groups")})

    data, logprobs = rows()
    from dataclasses import replace

    grouped = [
        replace(d, group=group, scalars={"label": label})
        for d, group, label in zip(data, ("a", "a", None), (1.0, 0.0, 1.0), strict=True)
    ]
    spec = LossSpec("test:pairs", pairs, frozenset({"logprobs", "logprobs@reference"}), "group")
    found = evaluate(spec, grouped, {"logprobs": logprobs, "logprobs@reference": logprobs})
    assert found.totals.loss == 3.0 and not any(grad.any() for grad in found.grads)
    with pytest.raises(DataError, match="it lacks the scalar 'label'"):
        evaluate(spec, [grouped[0], data[1]], {"logprobs": logprobs[:2], "logprobs@reference": logprobs[:2]})


def test_state_goes_on_where_a_loss_sees_the_step_and_nowhere_else() -> None:
    def running(outputs: Any, data: Any, state: Any) -> LossResult:
        mean = state.get("mean", 0.0) * 0.5 + outputs["logprobs"].mean().detach()
        return LossResult({"x": Contribution(outputs["logprobs"].sum() * mean)}, {}, {"mean": mean})

    data, logprobs = rows()
    first = evaluate(LossSpec("test:r", running, together="step"), data, {"logprobs": logprobs})
    second = evaluate(LossSpec("test:r", running, together="step"), data, {"logprobs": logprobs}, state=first.state)
    assert second.state["mean"] == pytest.approx(1.5 * first.state["mean"])
    with pytest.raises(EngineError, match='declare together="step"'):
        evaluate(LossSpec("test:r", running), data, {"logprobs": logprobs})


def test_a_loss_that_is_not_finite_names_its_rows() -> None:
    data, logprobs = rows()
    logprobs[1][0] = -np.inf
    with pytest.raises(NotFinite, match="'row 9'") as caught:
        evaluate(LossSpec("test:weighted", weighted), data, {"logprobs": logprobs})
    assert caught.value.rows == ("row 9",)
