"""Checks that `capabilities` and what works agree: a word that is said works, one that is not said refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.capabilities import ENGINE
from finetooth_hooks.engine import Engine, Handle, StepSettings
from finetooth_hooks.errors import EngineError, FinetoothError, Interrupted, PlanError
from finetooth_hooks.sampling import Sampling

from finetooth_kit.checks import expect, fail
from finetooth_kit.engines.cases import EngineCase
from finetooth_kit.losses import WEIGHTED_NLL

Ask = Callable[[Engine, EngineCase], Any]


def _handle(engine: Engine, case: EngineCase) -> Handle:
    """Of a forward; one that names nothing, of an engine that keeps none."""
    return engine.forward(case.data(), WEIGHTED_NLL).handle or Handle(1, engine.weights_version)


def _works_with_gradients(engine: Engine, case: EngineCase) -> bool:
    gradients = [np.where(datum.mask, -0.1, 0.0) for datum in case.data()]
    return engine.backward(_handle(engine, case), gradients).grad_norm > 0


def _works_without_gradients(engine: Engine, case: EngineCase) -> bool:
    engine.forward_backward(case.data(), WEIGHTED_NLL)
    engine.zero_grad()
    twice = engine.forward_backward(case.data(), WEIGHTED_NLL)
    once = case.engine().forward_backward(case.data(), WEIGHTED_NLL)
    return twice.loss == once.loss


def _is_released(engine: Engine, case: EngineCase) -> bool:
    handle = _handle(engine, case)
    engine.release(handle)
    engine.release(handle)
    try:
        engine.backward(handle)
    except EngineError:
        return True
    return False


def _is_broken_off(engine: Engine, case: EngineCase) -> bool:
    engine.interrupt_when(lambda: True)
    try:
        engine.logprobs(case.data())
    except Interrupted:
        engine.interrupt_when(lambda: False)
        return len(engine.logprobs(case.data())) > 0
    return False


def _is_recorded(engine: Engine, case: EngineCase) -> bool:
    with engine.profile(case.folder / "profile") as spans, spans.span("kit"):
        engine.logprobs(case.data())
    return all((case.folder / "profile" / name).is_file() for name in ("trace.json", "memory.json", "table.md"))


def _knows_no_such_copy(engine: Engine, case: EngineCase) -> bool:
    try:
        engine.move_role("nobody", 0.5)
    except PlanError as error:
        return "nobody" in str(error)
    return False


def _takes_a_rate(engine: Engine, case: EngineCase) -> bool:
    engine.forward_backward(case.data(), WEIGHTED_NLL)
    return engine.step(settings=StepSettings(learning_rate=0.25)).learning_rate == 0.25


def _goes_back(engine: Engine, case: EngineCase) -> bool:
    before = engine.logprobs(case.data())
    snapshot = engine.snapshot()
    engine.forward_backward(case.data(), WEIGHTED_NLL)
    engine.step()
    engine.rollback(snapshot)
    return all(np.array_equal(a, b) for a, b in zip(before, engine.logprobs(case.data()), strict=True))


def _is_loaded(engine: Engine, case: EngineCase) -> bool:
    engine.save(case.folder / "kept")
    case.engine().load(case.folder / "kept")
    return True


def _gives_depths(engine: Engine, case: EngineCase) -> bool:
    named = ("hidden", "hidden:1.0", "hidden:0", "hidden:0.0")
    for outputs in engine.forward(case.data(), returns=named, train=False).outputs:
        last, whole, first, beginning = (outputs[name] for name in named)
        if not np.array_equal(last, whole) or not np.array_equal(first, beginning) or first.shape != last.shape:
            return False
    try:
        engine.forward(case.data(), returns=("hidden:100000",), train=False)
    except FinetoothError as error:
        return "hidden:100000" in str(error)
    return False


def _keeps_weights(engine: Engine, case: EngineCase) -> bool:
    before = engine.logprobs(case.data())
    weights = {name: weight + 0 for name, weight in engine.weights().items()}
    engine.forward_backward(case.data(), WEIGHTED_NLL)
    engine.step()
    engine.set_weights(weights)
    return all(np.array_equal(a, b) for a, b in zip(before, engine.logprobs(case.data()), strict=True))


_WORKS: Mapping[str, Ask] = {
    "handles": lambda engine, case: engine.backward(_handle(engine, case)).grad_norm > 0,
    "gradients": _works_with_gradients,
    "zero_grad": _works_without_gradients,
    "generate": lambda engine, case: engine.generate(case.prompts(), Sampling(max_tokens=2)),
    "continuous": lambda engine, case: len(engine.running_batch()) == 0,
    "adapters": lambda engine, case: (
        engine.running_batch().add([1], Sampling(max_tokens=1), adapter=engine.hold(None)) == 0
    ),
    "full_state": _is_loaded,
    "snapshots": _goes_back,
    "interrupt": _is_broken_off,
    "reference": lambda engine, case: engine.logprobs(case.data(), role="reference"),
    "depths": _gives_depths,
    "head": lambda engine, case: engine.forward(case.data(), returns=("values",)).outputs,
    "usage": lambda engine, case: 0 < engine.usage().peak_memory >= engine.usage().memory >= 0 <= engine.peak_flops(),
    "profile": _is_recorded,
    "roles": _knows_no_such_copy,
    "step_settings": _takes_a_rate,
    "release": _is_released,
    "module": lambda engine, case: engine.module() is not None,
    "weights": _keeps_weights,
}
"""What shows that a word is true; `shared_base` concerns two engines, and is not to be seen from one."""

_REFUSES: Mapping[str, Ask] = {
    "handles": lambda engine, case: engine.backward(Handle(1, engine.weights_version)),
    "gradients": _works_with_gradients,
    "zero_grad": lambda engine, case: engine.zero_grad(),
    "generate": lambda engine, case: engine.generate(case.prompts(), Sampling(max_tokens=2)),
    "continuous": lambda engine, case: engine.running_batch(),
    "adapters": lambda engine, case: engine.hold(None),
    "snapshots": lambda engine, case: engine.snapshot(),
    "interrupt": lambda engine, case: engine.interrupt_when(lambda: False),
    "usage": lambda engine, case: engine.usage(),
    "profile": lambda engine, case: engine.profile(Path(case.folder)),
    "roles": lambda engine, case: engine.move_role("reference", 0.5),
    "module": lambda engine, case: engine.module(),
    "weights": lambda engine, case: engine.weights(),
    "release": lambda engine, case: engine.release(Handle(1, engine.weights_version)),
}
"""What must raise EngineError where a word is not said. An unknown role has a check of its own; settings of a step are
never given to an engine that does not take them."""


def derives_from_the_base(case: EngineCase) -> None:
    """An engine derives from `EngineBase`, so that it has every method of the contract."""
    engine: object = case.engine()
    derives = isinstance(engine, EngineBase)
    expect(derives, "the engine", f"a {type(engine).__name__}", "derived from finetooth_hooks.EngineBase")


def what_is_said_works(case: EngineCase) -> None:
    """Every capability that the engine names does what its word says."""
    for word in sorted(case.engine().capabilities & set(_WORKS)):
        try:
            works = _WORKS[word](case.engine(), case)
        except FinetoothError as error:
            fail(f"an engine with the capability {word!r}", error, ENGINE[word])
        expect(works, f"an engine with the capability {word!r}", works, ENGINE[word])


def what_is_not_said_is_refused(case: EngineCase) -> None:
    """A method whose capability is not named raises EngineError, in words that say what the engine cannot do."""
    for word in sorted(set(_REFUSES) - case.engine().capabilities):
        called = f"an engine without the capability {word!r}, asked for it"
        try:
            result = _REFUSES[word](case.engine(), case)
        except EngineError as error:
            expect(str(error), called, repr(error), "a message")
        else:
            fail(called, result, "an EngineError")


CHECKS = (derives_from_the_base, what_is_said_works, what_is_not_said_is_refused)
