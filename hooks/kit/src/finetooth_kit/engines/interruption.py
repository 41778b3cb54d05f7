"""Checks of an engine that can be broken off between two micro-batches (the capability `interrupt`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Backward, Engine, Forward
from finetooth_hooks.errors import Interrupted
from finetooth_hooks.sampling import Sampling

from finetooth_kit.checks import expect, fail
from finetooth_kit.engines.cases import EngineCase
from finetooth_kit.losses import CENTRED, WEIGHTED_NLL

TOKENS = 4
Call = Callable[[], Any]


class _StopAfter:
    """Counts how often it is asked, and says yes from the question `stop_at` on."""

    def __init__(self, stop_at: float = float("inf")) -> None:
        self.count, self.stop_at = 0, stop_at

    def __call__(self) -> bool:
        self.count += 1
        return self.count >= self.stop_at


def _backward(engine: Engine, data: Sequence[Datum], own_gradients: bool) -> Call:
    handle = engine.forward(data, None if own_gradients else CENTRED).handle
    assert handle is not None
    grads = [np.where(datum.mask, -0.1, 0.0) for datum in data] if own_gradients else None
    return lambda: engine.backward(handle, grads)


_PRIMITIVES: Mapping[str, tuple[tuple[str, ...], Callable[[Engine, Sequence[Datum], Any], Call]]] = {
    "forward(data)": ((), lambda e, data, _: lambda: e.forward(data)),
    "forward(data, loss)": ((), lambda e, data, _: lambda: e.forward(data, CENTRED)),
    "forward_backward(data, cross entropy)": ((), lambda e, data, _: lambda: e.forward_backward(data, WEIGHTED_NLL)),
    "forward_backward(data, a loss of the step)": ((), lambda e, data, _: lambda: e.forward_backward(data, CENTRED)),
    "backward(handle)": (("handles",), lambda e, data, _: _backward(e, data, False)),
    "backward(handle, grads)": (("handles", "gradients"), lambda e, data, _: _backward(e, data, True)),
    "logprobs(data)": ((), lambda e, data, _: lambda: e.logprobs(data)),
    "generate(prompts)": (
        ("generate",),
        lambda e, _, prompts: lambda: e.generate(prompts, Sampling(max_tokens=TOKENS, n=2, stop_ids=(), seed=3)),
    ),
}
"""What each needs, and how it is made ready for an engine, data and prompts."""


def _possible(engine: Engine) -> list[str]:
    return [name for name, (needs, _) in _PRIMITIVES.items() if set(needs) <= engine.capabilities]


def _made_ready(name: str, engine: Engine, case: EngineCase) -> Call:
    return _PRIMITIVES[name][1](engine, case.data(), case.prompts())


def asked_before_every_micro_batch(case: EngineCase) -> None:
    """Every primitive that computes over data asks at least once for each micro-batch, `generate` for each token of
    its longest completion; and an answer that is always no changes nothing."""
    batches = case.engine().forward_backward(case.data(), WEIGHTED_NLL).micro_batches
    for name in _possible(case.engine("interrupt")):
        engine, questions = case.engine("interrupt"), _StopAfter()
        call = _made_ready(name, engine, case)
        engine.interrupt_when(questions)
        call()
        least = TOKENS if name == "generate(prompts)" else batches
        expect(questions.count >= least, f"questions during {name}", questions.count, f"at least {least}")


def an_interrupted_call_leaves_no_trace(case: EngineCase) -> None:
    """Interrupted at its first, a middle and its last question, a primitive raises Interrupted. Afterwards the engine
    continues bit for bit as one that was never interrupted: gradients accumulated before stay, those of the call are
    gone, handles and states of losses are as they were."""
    for name in _possible(case.engine("interrupt")):
        wanted, count = _story(name, case, 0)
        for stop_at in sorted({1, (count + 1) // 2, count}):
            story, _ = _story(name, case, stop_at)
            for what, value in wanted.items():
                called = f"{what}, {name} broken off at question {stop_at} of {count} and called again"
                expect(
                    repr(story[what]) == repr(value), called, "other bits", "those of an engine that was not broken off"
                )


def _story(name: str, case: EngineCase, stop_at: int) -> tuple[dict[str, Any], int]:
    """Gradients before, the call (broken off once, unless `stop_at` is 0), more gradients, a step; what each gave, and
    how many questions the call asked."""
    engine, questions = case.engine("interrupt"), _StopAfter()
    engine.forward_backward(case.data(4, seed=1), CENTRED)
    call = _made_ready(name, engine, case)
    if stop_at:
        engine.interrupt_when(_StopAfter(stop_at))
        try:
            call()
        except Interrupted:
            pass
        else:
            fail(f"{name}, asked to stop at question {stop_at}", "a result", "Interrupted")
    engine.interrupt_when(questions)
    result = call()
    engine.interrupt_when(lambda: False)
    after = engine.forward_backward(case.data(4, seed=2), CENTRED)
    stepped = engine.step(metrics={"loss": after.loss or 0.0})
    outcome = {
        "its result": _bits(result),
        "the next loss": (after.loss, dict(after.metrics)),
        "the step": (stepped.step, stepped.grad_norm, stepped.learning_rate),
        "logprobs after the step": _bits(engine.logprobs(case.data())),
    }
    return outcome, questions.count


def _bits(value: Any) -> Any:
    """Comparable to the bit, without what two engines may call by other names."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Forward):
        outputs = [{name: _bits(array) for name, array in each.items()} for each in value.outputs]
        return outputs, value.loss, dict(value.components), dict(value.metrics), value.micro_batches
    if isinstance(value, Backward):
        return value.grad_norm, value.overflow
    return [_bits(each) for each in value] if isinstance(value, list) else value


CHECKS = (asked_before_every_micro_batch, an_interrupted_call_leaves_no_trace)
