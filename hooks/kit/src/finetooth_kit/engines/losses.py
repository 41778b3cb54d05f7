"""Checks of what an engine does with losses: values by formula, groups, whole steps, roles, states, refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.errors import EngineError
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.totals import merge_totals
from numpy.typing import NDArray

from finetooth_kit.checks import expect, fail
from finetooth_kit.engines.cases import EngineCase, all_close, close, footprint, masks, same_footprint, weights
from finetooth_kit.losses import (
    AGAINST_REFERENCE,
    CENTRED,
    MIXED,
    NOT_FINITE,
    PAIR_MARGIN,
    SMUGGLED_STATE,
    WEIGHTED_NLL,
    centred_gradient,
    mixed_by_hand,
    pair_margin_gradient,
)

Arrays = list[NDArray[np.float64]]
Formula = Callable[[Arrays, list[NDArray[np.bool_]]], tuple[float, Arrays]]


def loss_is_normalised_over_the_step(case: EngineCase) -> None:
    """Cross entropy is the weighted mean over all targets of the step, not a mean of means."""
    engine, data = case.engine(), case.data()
    logprobs = engine.logprobs(data)
    total = sum(weights(datum).sum() for datum in data)
    wanted = -sum(float((weights(d) * lp).sum()) for d, lp in zip(data, logprobs, strict=True)) / total
    for called, result in (
        ("forward_backward(data, cross entropy)", engine.forward_backward(data, WEIGHTED_NLL)),
        ("forward(data, cross entropy)", engine.forward(data, WEIGHTED_NLL)),
    ):
        close(engine, f"{called}.loss", result.loss, wanted, "-sum(weights * logprobs) / sum(weights)")
        close(engine, f"{called}.components['nll']", result.components.get("nll", np.nan), wanted, "the only component")
        counted = float(sum(datum.mask.sum() for datum in data))
        close(engine, f"{called}.metrics['targets']", result.metrics.get("targets", np.nan), counted, "summed up")


def _by_formula(case: EngineCase, spec: LossSpec, formula: Formula) -> None:
    engine, data = case.engine(), case.data()
    logprobs = [lp.astype(np.float64) for lp in engine.logprobs(data)]
    loss, grads = formula(logprobs, masks(data))
    result = engine.forward_backward(data, spec)
    close(engine, f"forward_backward(data, {spec.name}).loss", result.loss, loss, "the formula over logprobs(data)")
    if not {"handles", "gradients"} <= engine.capabilities:
        return
    other = case.engine()
    handle = other.forward(data).handle
    assert handle is not None
    other.backward(handle, grads)
    called = f"forward_backward(data, {spec.name})"
    same_footprint(
        engine, called, footprint(engine, data), footprint(other, data), "its gradient by hand, through backward"
    )


def totals_of_calls_merge(case: EngineCase) -> None:
    """However a step is split into calls, what they added up to gives the step's loss, components and metrics."""
    data = case.data()
    logprobs = [lp.astype(np.float64) for lp in case.engine().logprobs(data)]
    keys = [datum.group or "" for datum in data]
    loss, components, metrics = mixed_by_hand(logprobs, masks(data), [weights(datum) for datum in data], keys)
    counts = count_normalizers(data)
    for ends in ((6,), (2, 6), (2, 4, 6)):
        engine, parts = case.engine(), [data[start:end] for start, end in zip((0, *ends), ends, strict=False)]
        of_calls = [engine.forward_backward(part, MIXED, normalizer=counts).totals for part in reversed(parts)]
        totals = [total for total in of_calls if total is not None]
        called = f"forward_backward in {len(parts)} calls, their Forward.totals merged"
        expect(len(totals) == len(parts), called, f"{len(totals)} totals", "one of every call with a loss")
        merged = merge_totals(totals, counts)
        close(engine, f"{called}: loss", merged.loss, loss, "the formula over logprobs(data)", factor=10.0)
        for what, got, wanted in (("component", merged.components, components), ("metric", merged.metrics, metrics)):
            expect(set(got) == set(wanted), f"{called}: {what}s", ", ".join(sorted(got)), ", ".join(sorted(wanted)))
            for name, value in wanted.items():
                close(engine, f"{called}: {what} {name!r}", got[name], value, "its formula", factor=10.0)


def groups_stay_together(case: EngineCase) -> None:
    """A loss over pairs has the value and the gradient of its formula."""
    _by_formula(case, PAIR_MARGIN, pair_margin_gradient)


def whole_steps_stay_together(case: EngineCase) -> None:
    """A loss over the whole step has the value and the gradient of one big batch, however the step was cut."""
    _by_formula(case, CENTRED, centred_gradient)


def loss_state_goes_from_step_to_step(case: EngineCase) -> None:
    """A running mean sees every step once: the loss's state after two steps is the mean of two means."""
    seen: list[dict[str, float]] = []

    def watched(outputs: object, data: object, state: dict[str, float]) -> object:
        seen.append(dict(state))
        return CENTRED.fn(outputs, data, state)  # type: ignore[arg-type]

    spec = LossSpec("kit:watched", watched, CENTRED.needs, "step")  # type: ignore[arg-type]
    engine, data = case.engine(), case.data()
    means = []
    for _ in range(2):
        means.append(float(np.mean([lp.sum() for lp in engine.logprobs(data)])))
        engine.forward_backward(data, spec)
        engine.step()
    engine.forward(data, spec)
    first, last = seen[0], seen[-1]
    expect(first == {}, "first evaluation of a loss", f"state {first}", "an empty state")
    expect(last.get("steps") == 2.0, "third evaluation", f"state {last}", "steps = 2")
    close(engine, "running mean after two steps", last["mean"], float(np.mean(means)), "the mean of both means")


def reference_is_the_untrained_policy(case: EngineCase) -> None:
    """The reference keeps the first policy's numbers while the policy moves away; a loss reads both."""
    engine, data = case.engine("reference"), case.data()
    start = engine.logprobs(data)
    all_close(engine, "logprobs(role='reference')", engine.logprobs(data, role="reference"), start, "the fresh policy")
    for _ in range(2):
        engine.forward_backward(data, WEIGHTED_NLL)
        engine.step()
    reference, policy = engine.logprobs(data, role="reference"), engine.logprobs(data)
    all_close(engine, "logprobs(role='reference') after 2 steps", reference, start, "the fresh policy's")
    moved = max(float(np.abs(a - b).max()) for a, b in zip(policy, start, strict=True))
    expect(moved > 1e-6, "logprobs(data) after 2 steps", f"moved by {moved}", "away from the reference")
    result = engine.forward_backward(data, AGAINST_REFERENCE)
    differences = [float(p.sum() - r.sum()) for p, r in zip(policy, reference, strict=True)]
    wanted = float(np.mean([(d - 1.0) ** 2 for d in differences]))
    close(engine, "loss that reads logprobs@reference", result.loss, wanted, "its formula", factor=10.0)


def loss_that_is_not_finite_is_refused(case: EngineCase) -> None:
    """NaN is an EngineError that names data; no gradient and no weight keeps a trace of it."""
    engine, data = case.engine(), case.data()
    before = engine.logprobs(data)
    try:
        engine.forward_backward(data, NOT_FINITE)
    except EngineError as error:
        expect(any(datum.id in str(error) for datum in data), "loss NaN", error, "a message that names a datum's id")
    else:
        fail("forward_backward(data, a loss that is NaN)", "a result", "an EngineError")
    if "zero_grad" in engine.capabilities:
        engine.zero_grad()
    all_close(engine, "logprobs after a refused loss", engine.logprobs(data), before, "as before")
    engine.forward_backward(data, WEIGHTED_NLL)
    other = case.engine()
    other.forward_backward(data, WEIGHTED_NLL)
    called = "forward_backward after a refused loss"
    same_footprint(engine, called, footprint(engine, data), footprint(other, data), "the same on a fresh engine")


def state_of_a_partial_loss_is_refused(case: EngineCase) -> None:
    """A loss that is not `together: step` but changes its state is refused by name."""
    engine = case.engine()
    try:
        engine.forward_backward(case.data(), SMUGGLED_STATE)
    except EngineError as error:
        expect(SMUGGLED_STATE.name in str(error), "loss that changes its state", error, "a message with its name")
    else:
        fail("forward_backward with a loss that changes its state", "a result", "an EngineError with its name")


CHECKS = (
    loss_is_normalised_over_the_step,
    totals_of_calls_merge,
    groups_stay_together,
    whole_steps_stay_together,
    loss_state_goes_from_step_to_step,
    reference_is_the_untrained_policy,
    loss_that_is_not_finite_is_refused,
    state_of_a_partial_loss_is_refused,
)
