"""Checks of losses: a loss is a sum over what counts, in any layout and any library, and its gradient is its slope."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, get_args

import numpy as np
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossFn, LossResult, Metric, Per
from finetooth_hooks.entries import Loss
from numpy.typing import NDArray

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance, fail
from finetooth_kit.engines.loss_cases import (
    SEQUENCES,
    Convert,
    LossCase,
    OnDemand,
    mlx_array,
    numpy_array,
    torch_array,
)

SEEDS = (0, 1, 2)
_STEP = 1e-6


def _cases(case: EntryCase) -> list[LossCase]:
    assert isinstance(case.entry, Loss)
    return [LossCase(frozenset(case.entry.needs), case.entry.together, seed) for seed in SEEDS]


def _evaluate(
    fn: LossFn, case: LossCase, convert: Convert = numpy_array, state: Mapping[str, Any] | None = None
) -> Any:
    result = fn(case.outputs(convert), case.data(convert), state or {})
    expect_instance(result, LossResult, "loss(outputs, data, state)")
    return result


def _totals(result: LossResult) -> dict[str, float]:
    return {name: xp.item(part.total) for name, part in result.contributions.items()}


def _close(called: str, got: float, expected: float, what: str, tolerance: float = 1e-9) -> None:
    same = math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance * 10)
    expect(same, called, f"{got:.12g}", f"{expected:.12g}: {what}")


def _same_result(called: str, got: LossResult, wanted: LossResult, what: str, tolerance: float = 1e-9) -> None:
    expect(got.contributions.keys() == wanted.contributions.keys(), called, sorted(got.contributions), what)
    for name, total in _totals(wanted).items():
        _close(f"{called}, contribution {name!r}", _totals(got)[name], total, what, tolerance)
    expect(got.metrics.keys() == wanted.metrics.keys(), called, sorted(got.metrics), what)
    for name, metric in wanted.metrics.items():
        for part in ("total", "count"):
            pair = [float(getattr(m, part)) for m in (got.metrics[name], metric)]
            _close(f"{called}, metric {name!r}.{part}", pair[0], pair[1], what, tolerance)


@check_for("loss")
def contributions_are_finite_scalars(case: EntryCase) -> None:
    """Random data give at least one contribution, each a finite scalar with a known normalizer."""
    fn = case.build()
    for loss_case in _cases(case):
        result = _evaluate(fn, loss_case)
        expect(result.contributions, "loss(...)", "no contribution", "at least one")
        for name, part in result.contributions.items():
            expect_instance(part, Contribution, f"contribution {name!r}")
            expect(np.shape(part.total) == (), f"{name}.total", f"shape {np.shape(part.total)}", "a scalar")
            expect(np.isfinite(part.total), f"{name}.total", part.total, "a finite number")
            expect(part.per in get_args(Per), f"{name}.per", repr(part.per), f"one of {get_args(Per)}")
            expect(math.isfinite(part.weight), f"{name}.weight", part.weight, "a finite number")
        for name, metric in result.metrics.items():
            expect_instance(metric, Metric, f"metric {name!r}")
            expect(np.isfinite(float(metric.total)), f"metric {name!r}", metric.total, "a finite number")


@check_for("loss")
def reads_what_it_declares(case: EntryCase) -> None:
    """Fields and scalars of the data that it reads are those that the entry names; `weights` are always there."""
    assert isinstance(case.entry, Loss)
    fn = case.build()
    for loss_case in _cases(case):
        data = loss_case.data()
        fn(loss_case.outputs(), data, {})
        for what, values, declared in (
            ("fields", data.fields, case.entry.fields | {"weights"}),
            ("scalars", data.scalars, case.entry.scalars),
        ):
            assert isinstance(values, OnDemand)
            extra = sorted(values.read - declared)
            expect(not extra, f"loss(...), data.{what} that it read", extra, f"entry.{what}={sorted(declared)}")


@check_for("loss")
def a_sequence_that_does_not_count_stays_finite(case: EntryCase) -> None:
    """Sequences whose mask is false everywhere (fillers of a short rank) bring no NaN."""
    fn = case.build()
    for loss_case in _cases(case):
        for empty in (frozenset({0, 1}), frozenset(range(SEQUENCES))):
            for name, total in _totals(_evaluate(fn, replace(loss_case, empty=empty))).items():
                expect(math.isfinite(total), f"loss with empty sequences {sorted(empty)}: {name}", total, "finite")


@check_for("loss")
def masked_targets_do_not_matter(case: EntryCase) -> None:
    """Padding, and fields where the mask is false, change nothing."""
    fn = case.build()
    for loss_case in _cases(case):
        wanted = _evaluate(fn, loss_case)
        padded = _evaluate(fn, replace(loss_case, padding=3))
        _same_result("loss with 3 more padded targets", padded, wanted, "the same as without them")
        noisy = _evaluate(fn, replace(loss_case, noise=5.0))
        _same_result("loss with other fields where the mask is false", noisy, wanted, "the same")


@check_for("loss")
def parts_sum_to_the_whole(case: EntryCase) -> None:
    """With `together` sequence or group, totals over a union are the sums of the totals of its parts."""
    assert isinstance(case.entry, Loss)
    if case.entry.together == "step":
        raise CheckSkipped("together='step': the whole step is evaluated at once")
    size = 2 if case.entry.together == "group" else 1
    fn = case.build()
    for loss_case in _cases(case):
        whole = _evaluate(fn, loss_case)
        cuts = [tuple(range(i, i + size)) for i in range(0, SEQUENCES, size)]
        parts = [_evaluate(fn, replace(loss_case, sequences=cut)) for cut in cuts]
        called = f"loss over {len(cuts)} parts of {size}"
        for name, total in _totals(whole).items():
            got = sum(_totals(part).get(name, 0.0) for part in parts)
            _close(f"{called}, contribution {name!r}", got, total, "the total over all at once")
        for name, metric in whole.metrics.items():
            join = {"max": max, "min": min}.get(metric.reduce, sum)
            got = float(join(float(part.metrics[name].total) for part in parts))
            _close(f"{called}, metric {name!r}", got, float(metric.total), "the metric over all at once")


@check_for("loss")
def order_does_not_matter(case: EntryCase) -> None:
    """Sequences (whole groups, with `together: group`) may come in any order."""
    assert isinstance(case.entry, Loss)
    size = 2 if case.entry.together == "group" else 1
    fn = case.build()
    for loss_case in _cases(case):
        blocks = [tuple(range(i, i + size)) for i in range(0, SEQUENCES, size)]
        order = tuple(i for block in (*blocks[1::2], *blocks[::2]) for i in block)
        got = _evaluate(fn, replace(loss_case, sequences=order))
        _same_result(f"loss over sequences {order}", got, _evaluate(fn, loss_case), "the same as in order")


@check_for("loss")
def evaluation_is_repeatable(case: EntryCase) -> None:
    """Twice the same input, twice the same result: no randomness, nothing kept outside `state`, nothing written into
    the input."""
    fn = case.build()
    for loss_case in _cases(case):
        first = _evaluate(fn, loss_case)
        _same_result("loss, a second time", _evaluate(fn, loss_case), first, "the same", tolerance=0.0)


def _agrees(case: EntryCase, module: str, convert: Convert, tolerance: float) -> None:
    try:
        import_module(module)
    except ImportError as error:
        raise CheckSkipped(f"{module} is not installed") from error
    fn = case.build()
    for loss_case in _cases(case):
        wanted, got = _evaluate(fn, loss_case), _evaluate(fn, loss_case, convert)
        for name, total in _totals(got).items():
            known = wanted.contributions[name]
            _close(f"loss under {module}, {name!r}", total, float(known.total), "NumPy's result", tolerance)
        for name, metric in got.metrics.items():
            known_metric = wanted.metrics[name]
            total = xp.item(metric.total) if hasattr(metric.total, "item") else float(metric.total)
            _close(f"metric under {module}, {name!r}", total, float(known_metric.total), "NumPy's result", tolerance)


@check_for("loss")
def torch_agrees_with_numpy(case: EntryCase) -> None:
    """The same numbers under torch in float64."""
    _agrees(case, "torch", torch_array, 1e-9)


@check_for("loss")
def mlx_agrees_with_numpy(case: EntryCase) -> None:
    """The same numbers under MLX in float32."""
    _agrees(case, "mlx.core", mlx_array, 1e-4)


def _objective(result: LossResult) -> Any:
    return sum(part.weight * part.total for part in result.contributions.values())


def _numeric_slope(fn: LossFn, case: LossCase, need: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Central differences of the weighted totals, one output value at a time, and where they were taken: where the
    mask is true."""
    base = case.output(need)
    slope = np.zeros_like(base)
    counted = np.ones(base.shape, dtype=bool)
    if base.ndim > 1:
        counted &= case.mask().reshape(*case.mask().shape, *[1] * (base.ndim - 2))
    for index in zip(*np.nonzero(counted), strict=True):
        ends = []
        for sign in (1.0, -1.0):
            moved = base.copy()
            moved[index] += sign * _STEP
            ends.append(float(_objective(_evaluate(fn, replace(case, overrides={need: moved})))))
        slope[index] = (ends[0] - ends[1]) / (2 * _STEP)
    return slope, counted


@check_for("loss")
def gradient_is_the_slope(case: EntryCase) -> None:
    """torch's gradient of the policy's outputs equals central differences of the NumPy evaluation.

    A loss that stops a gradient on purpose (a baseline, a running mean) fails here: its entry says so in
    `expected_failures`.
    """
    try:
        torch = import_module("torch")
    except ImportError as error:
        raise CheckSkipped("torch is not installed") from error
    fn = case.build()
    for loss_case in _cases(case)[:2]:
        outputs = loss_case.outputs(torch_array)
        policy = [need for need in sorted(loss_case.needs) if "@" not in need]
        for need in policy:
            outputs[need].requires_grad_(True)
        total = _objective(fn(outputs, loss_case.data(torch_array), {}))
        grads = torch.autograd.grad(total, [outputs[need] for need in policy], allow_unused=True)
        for need, grad in zip(policy, grads, strict=True):
            wanted, counted = _numeric_slope(fn, loss_case, need)
            got = np.zeros_like(wanted) if grad is None else np.where(counted, grad.numpy(), 0.0)
            worst = float(np.max(np.abs(got - wanted) / (1e-3 + np.abs(wanted))))
            if worst > 1e-3:
                index = tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(got - wanted)), wanted.shape))
                fail(
                    f"d loss / d {need}{list(index)} under torch",
                    f"{got[index]:.8g}",
                    f"{wanted[index]:.8g}, its slope",
                )


@check_for("loss")
def gradient_is_in_proportion_as_declared(case: EntryCase) -> None:
    """Where the entry says `proportional_to`, the gradient of the log-probabilities is the field times one number."""
    assert isinstance(case.entry, Loss)
    name = case.entry.proportional_to
    if name is None:
        return
    fn = case.build()
    for loss_case in _cases(case)[:2]:
        slope, counted = _numeric_slope(fn, loss_case, "logprobs")
        values = np.where(counted, loss_case.field(name), 0.0)
        largest = np.unravel_index(np.argmax(np.abs(values)), values.shape)
        wanted = values * (slope[largest] / values[largest])
        worst = np.unravel_index(np.argmax(np.abs(slope - wanted)), slope.shape)
        if abs(slope[worst] - wanted[worst]) > 1e-3 * (1e-3 + abs(slope[largest])):
            index = [int(i) for i in worst]
            fail(
                f"d loss / d logprobs{index}, with proportional_to={name!r}",
                f"{slope[worst]:.8g}",
                f"{wanted[worst]:.8g}, {name}{index} times what the largest of them is multiplied with",
            )


@check_for("loss")
def state_keeps_the_rule(case: EntryCase) -> None:
    """Only `together: step` may change the state; a state is numbers and NumPy arrays, and the next step takes it."""
    assert isinstance(case.entry, Loss)
    fn = case.build()
    for loss_case in _cases(case):
        state = dict(_evaluate(fn, loss_case).state)
        if case.entry.together != "step":
            expect(
                state == {}, f"loss with together={case.entry.together!r}", f"state {state}", "the state it was given"
            )
            continue
        for name, value in state.items():
            called = f"state[{name!r}]"
            expect_instance(value, (int, float, np.ndarray, np.generic), called)
            expect(np.all(np.isfinite(value)), called, value, "finite numbers")
        restored = json.loads(
            json.dumps({k: v if isinstance(v, int | float) else v.tolist() for k, v in state.items()})
        )
        restored = {k: np.asarray(v) if isinstance(v, list) else v for k, v in restored.items()}
        again, wanted = (_evaluate(fn, loss_case, state=before) for before in (restored, state))
        _same_result("loss with a restored state", again, wanted, "the same as with the state kept", tolerance=0.0)
        expect(
            again.state.keys() == state.keys(), "state of the next step", sorted(again.state), f"keys {sorted(state)}"
        )
