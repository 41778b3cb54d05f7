"""Checks of what an engine does with a loss or a gradient that is not finite: rows are named, nothing keeps a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossData, LossResult, LossSpec, LossState, Outputs
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import NotFinite

from finetooth_kit.checks import expect, fail
from finetooth_kit.engines.cases import EngineCase
from finetooth_kit.losses import CENTRED, WEIGHTED_NLL, centred, sums_of


def poisoned(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """`centred`, but NaN where the scalar `bad` is not 0."""
    result = centred(outputs, data, state)
    nan = xp.where(data.scalars["bad"] != 0, float("nan"), 0.0)
    total = result.contributions["centred"].total + xp.sum(nan)
    return replace(result, contributions={"centred": Contribution(total, per="sequences")})


def poisoned_rows(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """The same for a loss that sees a sequence at a time."""
    return LossResult(poisoned(outputs, data, {}).contributions, state=state)


def cliff(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
    """Finite, with a gradient that is not: the root of 0 where the scalar `bad` is not 0."""
    sums = sums_of(outputs, data)
    root = xp.sqrt(xp.where(data.scalars["bad"] != 0, sums - xp.stop_gradient(sums), 1.0))
    return LossResult({"cliff": Contribution(xp.sum(root) - xp.sum(sums), per="sequences")}, state=state)


POISONED = LossSpec("kit:poisoned", poisoned, together="step")
POISONED_ROWS = LossSpec("kit:poisoned_rows", poisoned_rows)
CLIFF = LossSpec("kit:cliff", cliff)


def _data(case: EngineCase, name: str, bad: int = -1) -> list[Datum]:
    """Data whose ids begin with `name`; the one at `bad` has the scalar."""
    return [
        replace(datum, id=f"{name}:{row}", scalars={"bad": float(row == bad)}) for row, datum in enumerate(case.data())
    ]


def _ending(engine: Engine, case: EngineCase) -> dict[str, Any]:
    """What comes after, to the bit."""
    result = engine.forward_backward(_data(case, "after"), CENTRED)
    stepped = engine.step(metrics={"loss": result.loss or 0.0})
    return {
        "the next loss": (result.loss, dict(result.metrics)),
        "the next step": (stepped.step, stepped.grad_norm, stepped.learning_rate, stepped.skipped),
        "logprobs after it": [array.tobytes() for array in engine.logprobs(case.data())],
    }


def _engine_after_a_step(case: EngineCase) -> Engine:
    engine = case.engine()
    engine.forward_backward(_data(case, "first"), CENTRED)
    engine.step()
    return engine


def _expect_same(called: str, ending: dict[str, Any], wanted: dict[str, Any]) -> None:
    for what, value in wanted.items():
        same = repr(ending[what]) == repr(value)
        expect(same, f"{what}, {called}", "other bits", "those of an engine that never saw these data")


def _expect_rows_named(called: str, error: NotFinite, needed: Sequence[Datum], possible: Sequence[Datum]) -> None:
    rows, missing = set(error.rows), [datum.id for datum in needed if datum.id not in error.rows]
    expect(not missing, f"{called}: NotFinite.rows", error.rows, f"{missing} among them")
    odd = sorted(rows - {datum.id for datum in possible})
    expect(not odd, f"{called}: NotFinite.rows", odd, "ids of its data only")


def a_loss_of_nan_names_its_rows(case: EngineCase) -> None:
    """A loss that one datum makes NaN raises NotFinite with its id; what was accumulated before stays, and the engine
    continues as if the call had not been made: weights, optimizer, counters and states of losses."""
    with np.errstate(all="ignore"):
        undisturbed = _engine_after_a_step(case)
        undisturbed.forward_backward(_data(case, "kept"), WEIGHTED_NLL)
        wanted = _ending(undisturbed, case)
        for spec in (POISONED_ROWS, POISONED):
            called, data = f"forward_backward(data, {spec.name})", _data(case, "bad", 4)
            engine = _engine_after_a_step(case)
            engine.forward_backward(_data(case, "kept"), WEIGHTED_NLL)
            version = engine.weights_version
            try:
                engine.forward_backward(data, spec)
            except NotFinite as error:
                _expect_rows_named(called, error, data[4:5], data)
            else:
                fail(called, "a result", "NotFinite")
            expect(engine.weights_version == version, f"weights_version after {called}", "another", f"{version}")
            _expect_same(f"after {called}", _ending(engine, case), wanted)


def a_gradient_that_is_not_finite_names_what_was_accumulated(case: EngineCase) -> None:
    """A loss that is finite with a gradient that is not: `step` raises NotFinite with every datum since the last step,
    drops the gradients, and weights, optimizer, schedule and counters are as before. With a loss scale the step may be
    skipped instead, and the weights are as before."""
    with np.errstate(all="ignore"):
        wanted = _ending(_engine_after_a_step(case), case)
        engine, good, data = _engine_after_a_step(case), _data(case, "good"), _data(case, "bad", 2)
        before = [array.tobytes() for array in engine.logprobs(case.data())]
        engine.forward_backward(good, WEIGHTED_NLL)
        engine.forward_backward(data, CLIFF)
        try:
            stepped = engine.step()
        except NotFinite as error:
            _expect_rows_named("step()", error, [*good, *data], [*good, *data])
        else:
            expect(stepped.skipped, "step() with a gradient that is not finite", "a step", "NotFinite, or one skipped")
            same = [array.tobytes() for array in engine.logprobs(case.data())] == before
            expect(same, "logprobs after a step that was skipped", "other bits", "those before it")
            return
        _expect_same("after a step that was not finite", _ending(engine, case), wanted)


CHECKS = (a_loss_of_nan_names_its_rows, a_gradient_that_is_not_finite_names_what_was_accumulated)
