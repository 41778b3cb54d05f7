"""A step with numbers of its own equals a step of an engine whose recipe has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import EngineError, Handle
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
