"""Checks of `backward`, `forward_backward`, `step` and `zero_grad`: gradients, however they were asked for."""

from __future__ import annotations

import numpy as np
from finetooth_hooks.engine import Engine, Handle
from finetooth_hooks.errors import EngineError

from finetooth_kit.checks import expect, fail
from finetooth_kit.engines.cases import EngineCase, close, footprint, same_footprint, weights
from finetooth_kit.losses import PLAIN_SUM, WEIGHTED_NLL


def step_changes_the_weights(case: EngineCase) -> None:
    """A step counts, reports what it applied and moves the policy; five of them lower the loss."""
    engine, data = case.engine(), case.data()
    before = engine.logprobs(data)
    losses = [engine.forward_backward(data, WEIGHTED_NLL).loss]
    stepped = engine.step(metrics={"loss": losses[0] or 0.0})
    expect(
        (stepped.step, engine.weights_version) == (1, 1), "step()", (stepped.step, engine.weights_version), "1 and 1"
    )
    expect(stepped.learning_rate > 0 and stepped.grad_norm > 0, "step()", stepped, "a rate and a norm above 0")
    moved = any(not np.array_equal(a, b) for a, b in zip(before, engine.logprobs(data), strict=True))
    expect(moved, "logprobs(data) after step()", "no change", "another policy")
    for _ in range(5):
        losses.append(engine.forward_backward(data, WEIGHTED_NLL).loss)
        engine.step()
    first, last = losses[0], losses[-1]
    expect(first is not None and last is not None and last < first, "5 steps on the same data", losses, "a lower loss")


def forward_changes_nothing(case: EngineCase) -> None:
    """`forward` and `logprobs` leave no gradient behind."""
    engine, data = case.engine(), case.data()
    engine.forward(data, WEIGHTED_NLL)
    engine.logprobs(data)
    engine.forward_backward(data, WEIGHTED_NLL)
    other = case.engine()
    other.forward_backward(data, WEIGHTED_NLL)
    called = "forward(data), logprobs(data), forward_backward(data)"
    same_footprint(engine, called, footprint(engine, data), footprint(other, data), "forward_backward(data) alone")


def forward_then_backward_is_forward_backward(case: EngineCase) -> None:
    """The two halves give the gradients of the whole."""
    engine, data = case.engine("handles"), case.data()
    forward = engine.forward(data, WEIGHTED_NLL)
    expect(forward.handle is not None, "forward(data, loss).handle", None, "a handle, as the capability says")
    assert forward.handle is not None
    backward = engine.backward(forward.handle)
    other = case.engine()
    whole = other.forward_backward(data, WEIGHTED_NLL)
    expect(whole.handle is None, "forward_backward(data).handle", whole.handle, "None")
    close(engine, "forward(data, loss).loss", forward.loss, whole.loss, "that of forward_backward")
    wanted = footprint(other, data)
    close(engine, "backward(handle).grad_norm", backward.grad_norm, wanted.grad_norm, "that of forward_backward")
    expect(not backward.overflow, "backward(handle).overflow", True, "False")
    same_footprint(engine, "forward, backward", footprint(engine, data), wanted, "forward_backward(data)")


def caller_gradients_equal_the_loss(case: EngineCase) -> None:
    """dL/dlogprob of cross entropy, given by the caller, gives the gradients of the loss itself; twice of it, twice."""
    engine, data = case.engine("handles", "gradients"), case.data()
    total = sum(weights(datum).sum() for datum in data)
    grads = [-weights(datum) / total for datum in data]
    norms = []
    for factor in (2.0, 1.0):
        handle = engine.forward(data).handle
        assert handle is not None
        norms.append(engine.backward(handle, [factor * grad for grad in grads]).grad_norm)
        if factor == 2.0:
            engine.zero_grad()
    close(engine, "backward with doubled grads", norms[0], 2.0 * norms[1], "twice the norm")
    other = case.engine()
    other.forward_backward(data, WEIGHTED_NLL)
    called = "backward(handle, -weights / sum of weights)"
    same_footprint(engine, called, footprint(engine, data), footprint(other, data), "forward_backward(cross entropy)")


def _whole_and_split(case: EngineCase) -> tuple[Engine, Engine]:
    data = case.data()
    totals = {
        "weights": float(sum(weights(datum).sum() for datum in data)),
        "tokens": float(sum(datum.mask.sum() for datum in data)),
        "sequences": float(len(data)),
        "groups": float(len({datum.group for datum in data})),
    }
    whole, split = case.engine(), case.engine()
    result = whole.forward_backward(data, WEIGHTED_NLL)
    losses = [split.forward_backward(part, WEIGHTED_NLL, normalizer=totals).loss for part in (data[:4], data[4:])]
    close(whole, "sum of the losses of two calls", sum(filter(None, losses)), result.loss, "the loss of one call")
    return whole, split


def calls_accumulate(case: EngineCase) -> None:
    """Two calls with the normalizers of the whole step equal one call with all data."""
    whole, split = _whole_and_split(case)
    data = case.data()
    called = "forward_backward of 4 and of 2 data with normalizer="
    same_footprint(whole, called, footprint(split, data), footprint(whole, data), "forward_backward of all 6")


def normalizer_divides(case: EngineCase) -> None:
    """A given total replaces the counted one: twice the total, half the loss and gradient; `per: none` ignores it."""
    engine, data = case.engine(), case.data()
    counted = sum(weights(datum).sum() for datum in data)
    doubled = {"weights": 2.0 * counted, "tokens": 1e6, "sequences": 1e6, "groups": 1e6}
    half = engine.forward_backward(data, WEIGHTED_NLL, normalizer=doubled)
    half_norm = engine.step().grad_norm
    other = case.engine()
    full = other.forward_backward(data, WEIGHTED_NLL)
    close(engine, "loss with twice the total", half.loss, (full.loss or 0.0) / 2, "half the loss")
    close(engine, "grad_norm with twice the total", half_norm, other.step().grad_norm / 2, "half the norm")
    third = case.engine()
    plain = third.forward_backward(data, PLAIN_SUM, normalizer=doubled)
    wanted = -sum(float(lp.sum()) for lp in case.engine().logprobs(data))
    close(engine, "loss with per='none'", plain.loss, wanted, "the plain sum")


def zero_grad_drops(case: EngineCase) -> None:
    """After `zero_grad` the next gradients stand alone."""
    engine, data = case.engine("zero_grad"), case.data()
    engine.forward_backward(case.data(seed=1), WEIGHTED_NLL)
    engine.zero_grad()
    engine.forward_backward(data, WEIGHTED_NLL)
    other = case.engine()
    other.forward_backward(data, WEIGHTED_NLL)
    called = "forward_backward, zero_grad, forward_backward"
    same_footprint(engine, called, footprint(engine, data), footprint(other, data), "the last one alone")


def step_drops_gradients(case: EngineCase) -> None:
    """Gradients of one step do not leak into the next: one divided by a huge total leaves next to nothing."""
    engine, data = case.engine(), case.data()
    engine.forward_backward(data, WEIGHTED_NLL)
    first = engine.step().grad_norm
    engine.forward_backward(data, WEIGHTED_NLL, normalizer=dict.fromkeys(("weights", "tokens", "sequences"), 1e6))
    second = engine.step().grad_norm
    expect(
        second < 1e-2 * first, "grad_norm of a step of almost no loss", second, f"far below {first} of the step before"
    )


def _expect_refusal(engine: Engine, handle: Handle, called: str) -> None:
    try:
        engine.backward(handle)
    except EngineError:
        return
    fail(called, "gradients", "an EngineError")


def spent_handles_are_refused(case: EngineCase) -> None:
    """A handle that was used, that is older than a step, or that was never given, is refused by an EngineError."""
    engine, data = case.engine("handles"), case.data()
    used, stale = engine.forward(data, WEIGHTED_NLL).handle, engine.forward(data, WEIGHTED_NLL).handle
    assert used is not None and stale is not None
    engine.backward(used)
    _expect_refusal(engine, used, "backward(handle), a second time")
    engine.step()
    _expect_refusal(engine, stale, "backward(handle from before the step)")
    _expect_refusal(engine, Handle(10**9, engine.weights_version), "backward(a handle nobody gave)")


def fresh_engines_agree(case: EngineCase) -> None:
    """Two fresh engines do bit for bit the same."""
    data = case.data()
    results = []
    for _ in range(2):
        engine = case.engine()
        losses = []
        for _ in range(2):
            losses.append(engine.forward_backward(data, WEIGHTED_NLL).loss)
            losses.append(engine.step().grad_norm)
        results.append((losses, engine.logprobs(data)))
    (a, b) = results
    expect(a[0] == b[0], "losses and norms of 2 steps, twice", b[0], f"{a[0]}")
    same = all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    expect(same, "logprobs after 2 steps, twice", "different bits", "the same bits")


CHECKS = (
    step_changes_the_weights,
    forward_changes_nothing,
    forward_then_backward_is_forward_backward,
    caller_gradients_equal_the_loss,
    calls_accumulate,
    normalizer_divides,
    zero_grad_drops,
    step_drops_gradients,
    spent_handles_are_refused,
    fresh_engines_agree,
)
