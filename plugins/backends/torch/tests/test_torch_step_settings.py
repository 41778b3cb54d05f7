"""A step with numbers of its own equals a step of an engine whose recipe has them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import EngineError, Handle, OptimizerBase
from finetooth_hooks.engine import StepSettings


def three_steps(kit: SimpleNamespace, engine: Any, settings: StepSettings | None) -> dict[str, np.ndarray]:
    for _ in range(3):
        engine.forward_backward(kit.data(), kit.nll)
        engine.step(settings=settings)
    weights: dict[str, np.ndarray] = kit.weights(engine)
    return weights


class Constant:
    """A schedule that changes nothing."""

    def factor(self, step: int, total: int | None) -> float:
        return 1.0

    def observe(self, metrics: Any) -> None: ...
    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None: ...


def test_a_step_takes_numbers_of_its_own(kit: SimpleNamespace) -> None:
    options = {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.4}
    expected = kit.engine(
        schedule=Constant(), optimizer=kit.optimizer(learning_rate=0.02, options=options), max_grad_norm=0.05
    )
    given = kit.engine(schedule=Constant(), optimizer=kit.optimizer(learning_rate=0.5), max_grad_norm=0.0)
    plain = kit.engine(schedule=Constant(), optimizer=kit.optimizer(learning_rate=0.5), max_grad_norm=0.0)
    settings = StepSettings(learning_rate=0.02, max_grad_norm=0.05, optimizer=options)
    want, have = three_steps(kit, expected, None), three_steps(kit, given, settings)
    assert all(np.array_equal(want[name], have[name]) for name in want)
    other = three_steps(kit, plain, None)
    assert any(not np.array_equal(want[name], other[name]) for name in want)
    # they were those steps' alone
    group = given._parts.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 1e-2)


class Grouped(OptimizerBase):
    """Sgd with a group at a tenth of the rate, as for embeddings; `own` are the rates of the groups."""

    learning_rate = 0.1

    def __init__(self, own: tuple[float, ...] = (0.1, 0.01)) -> None:
        self.own = own

    def create(self, named: Any) -> torch.optim.Optimizer:
        parameters = [parameter for _, parameter in named]
        first, second = parameters[::2], parameters[1::2]
        groups = [{"params": first, "lr": self.own[0]}, {"params": second, "lr": self.own[1]}]
        return torch.optim.SGD(groups)


@pytest.mark.parametrize("settings", [None, StepSettings(learning_rate=0.05)])
def test_groups_keep_their_share_of_the_rate(kit: SimpleNamespace, settings: StepSettings | None) -> None:
    """w <- w - share * rate * g, with the schedule's rate and with that of the step alone."""
    engine = kit.engine(optimizer=Grouped())  # the kit's schedule warms up: a quarter of the rate
    before = kit.weights(engine)
    engine.forward_backward(kit.data(), kit.nll)
    gradients = kit.gradients(engine)
    stepped = engine.step(settings=settings)
    rate = 0.025 if settings is None else 0.05
    assert stepped.learning_rate == pytest.approx(rate)
    for place, (name, weight) in enumerate(kit.weights(engine).items()):
        share = 1.0 if place % 2 == 0 else 0.1
        moved = before[name] - weight
        np.testing.assert_allclose(moved, share * rate * gradients[name], rtol=1e-3, atol=1e-7)


def test_an_optimizer_that_says_nothing_of_rates_takes_that_of_the_step(kit: SimpleNamespace) -> None:
    """All groups alike, whatever they were made with: an engine sets the rate before each step."""
    engines = [kit.engine(optimizer=Grouped(own=own)) for own in ((0.1, 0.1), (7.0, 7.0))]
    for engine in engines:
        engine.forward_backward(kit.data(), kit.nll)
        engine.step()
    one, other = (kit.weights(engine) for engine in engines)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_share_survives_a_state(kit: SimpleNamespace, tmp_path: Path) -> None:
    engine, other = kit.engine(optimizer=Grouped()), kit.engine(optimizer=Grouped())
    three_steps(kit, engine, None)
    engine.save(tmp_path / "state")
    other.load(tmp_path / "state")
    one, two = three_steps(kit, engine, None), three_steps(kit, other, None)
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (StepSettings(optimizer={"momentun": 0.9}), "no option 'momentun'"),
        (StepSettings(optimizer={"lr": 0.9}), "no option 'lr'"),
        (StepSettings(optimizer={"betas": 0.9}), "betas is 0.9"),
        (StepSettings(optimizer={"betas": (0.9, 1.0)}), "betas is 1.0"),
        (StepSettings(optimizer={"eps": -1.0}), "eps is -1.0"),
        (StepSettings(learning_rate=float("nan")), "learning_rate is nan"),
        (StepSettings(max_grad_norm=-1.0), "max_grad_norm is -1.0"),
    ],
)
def test_numbers_that_make_no_sense_change_nothing(kit: SimpleNamespace, settings: StepSettings, message: str) -> None:
    engine = kit.engine()
    engine.forward_backward(kit.data(), kit.nll)
    before = kit.gradients(engine)
    with pytest.raises(EngineError, match=message):
        engine.step(settings=settings)
    after = kit.gradients(engine)
    assert before and all(np.array_equal(before[name], after[name]) for name in before)
    assert engine.weights_version == 0


def test_norms_keep_their_decay(kit: SimpleNamespace) -> None:
    """Weight decay given with a step is that of matrices, as a recipe's is."""
    engine = kit.engine(adapter=kit.adapter(full=True))
    optimizer = engine._parts.optimizer
    matrices = [p for group in optimizer.param_groups for p in group["params"] if p.ndim >= 2]
    vectors = [p for group in optimizer.param_groups for p in group["params"] if p.ndim < 2]
    own = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer.param_groups[:] = [{**own, "params": matrices}, {**own, "params": vectors, "weight_decay": 0.0}]
    seen = {}
    update = optimizer.step
    optimizer.step = lambda: (
        seen.update({len(g["params"]): g["weight_decay"] for g in optimizer.param_groups}),
        update(),
    )
    engine.forward_backward(kit.data(), kit.nll)
    engine.step(settings=StepSettings(optimizer={"weight_decay": 0.3}))
    assert seen == {len(matrices): 0.3, len(vectors): 0.0}


def test_a_handle_can_be_given_up(kit: SimpleNamespace) -> None:
    engine = kit.engine()
    handle = engine.forward(kit.data(), kit.nll).handle
    assert "release" in engine.capabilities
    engine.release(handle)
    engine.release(Handle(99, 0))
    with pytest.raises(EngineError, match="unknown or was used"):
        engine.backward(handle)
