"""Checks of methods, driving the fake engine over a few examples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from finetooth_hooks.capabilities import ENGINE
from finetooth_hooks.entries import Method
from finetooth_hooks.errors import NotFinite
from finetooth_hooks.protocols import Method as Driver
from finetooth_hooks.reports import Prepared, StepReport

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance, fail
from finetooth_kit.fake_context import FakeContext
from finetooth_kit.fake_engine import FakeEngine
from finetooth_kit.kinds_of_rows import prepared_on_any

_LIMIT = 50


def _prepare(case: EntryCase) -> tuple[FakeContext, FakeEngine, Driver, Prepared]:
    """A method over rows of a kind that it takes."""

    def make() -> tuple[FakeContext, Driver]:
        context = case.context()
        return context, case.build(context)

    context, method, prepared = prepared_on_any(make)
    return context, FakeEngine(context.tokenizer, context.renderer.stop_ids), method, prepared


@check_for("method")
def method_needs_known_capabilities(case: EntryCase) -> None:
    """`needs` names capabilities of the contract."""
    assert isinstance(case.entry, Method)
    unknown = sorted(set(case.entry.needs) - set(ENGINE))
    expect(not unknown, "entry.needs", unknown, f"of {sorted(ENGINE)}")


@check_for("method")
def each_item_is_one_step(case: EntryCase) -> None:
    """prepare() counts; then each item of steps() is one optimizer step with its report, as many as were planned."""
    _, engine, method, prepared = _prepare(case)
    expect_instance(prepared, Prepared, "prepare()")
    expect(prepared.report.used > 0, "prepare().report", prepared.report, "some data used")
    reports = list(itertools.islice(method.steps(engine), _LIMIT))
    for number, report in enumerate(reports, start=1):
        expect_instance(report, StepReport, "steps(engine)")
        expect(report.step == number, f"item {number} of steps(engine)", f"step {report.step}", f"step {number}")
    done = engine.calls.count("step")
    expect(done == len(reports), "steps(engine)", f"{done} calls of step for {len(reports)} items", "one an item")
    if prepared.total_steps is not None and prepared.total_steps < _LIMIT:
        expect(
            done == prepared.total_steps, "list(steps(engine))", f"{done} steps", f"{prepared.total_steps} as planned"
        )


@check_for("method")
def restored_method_goes_on(case: EntryCase) -> None:
    """A state taken after a step, and saved, makes a second method send the engine what would have come next."""
    _, engine, method, _ = _prepare(case)
    iterator = method.steps(engine)
    next(iterator)
    state = _through_checkpoint(method.state())
    wanted = len(engine.seen)
    for _ in itertools.islice(iterator, 2):
        pass
    _, second_engine, second, _ = _prepare(case)
    second.restore(state)
    second_engine.weights_version = 1
    for _ in itertools.islice(second.steps(second_engine), 2):
        pass
    expect(
        second_engine.seen == engine.seen[wanted:],
        "steps(engine) of a restored method",
        f"{len(second_engine.seen)} calls with other data",
        "the data of the uninterrupted one",
    )


@check_for("method")
def state_after_a_failed_step_is_behind_its_data(case: EntryCase) -> None:
    """The second step fails in the engine: a method restored from the state it has then continues with the third."""
    _, engine, method, _ = _prepare(case)
    ends = [len(engine.seen) for _ in itertools.islice(method.steps(engine), 3)]
    if len(ends) < 3:
        raise CheckSkipped("it has fewer than three steps here")
    _, failing, method, _ = _prepare(case)
    iterator = method.steps(failing)
    next(iterator)
    failing.refuse = NotFinite("the loss is nan")
    try:
        next(iterator)
    except NotFinite:
        pass
    else:
        fail("a step in which forward_backward raises NotFinite", "a report", "NotFinite, passed on")
    _, after, second, _ = _prepare(case)
    second.restore(_through_checkpoint(method.state()))
    next(second.steps(after))
    expect(
        after.seen == engine.seen[ends[1] : ends[2]],
        "steps(engine) of a method restored from the state after a failed step",
        "other data",
        "those of the step after it",
    )


def _through_checkpoint(state: Any) -> Any:
    """What comes back of a state that was saved: JSON, and copies of its arrays."""
    if isinstance(state, np.ndarray):
        return state.copy()
    if isinstance(state, Mapping):
        return {json.loads(json.dumps(name)): _through_checkpoint(part) for name, part in state.items()}
    return (
        [_through_checkpoint(part) for part in state]
        if isinstance(state, list | tuple)
        else json.loads(json.dumps(state))
    )
