"""Running out of memory: one line that says what to change, and nothing lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import EngineError, MemoryEstimate, Plan
from finetooth_hooks.testing.fake_context import TRAIN
from finetooth_torch.exhaustion import Situation, asked_for, exhausted, guarded, is_exhaustion, ladder

HOST = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 5368709120 bytes. Error code 12"  # noqa: E501
DEVICE = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.80 GiB"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError(HOST), 5 * 2**30),
        (torch.OutOfMemoryError(DEVICE), int(2.5 * 2**30)),
        (MemoryError(), 0),
        (np._core._exceptions._ArrayMemoryError((4,), np.dtype("f4")), 0),
        (OSError(12, "Cannot allocate memory"), 0),
        (RuntimeError("could not create a memory object"), 0),
    ],
)
def test_what_says_that_memory_is_out_is_known(error: Exception, asked: int) -> None:
    assert is_exhaustion(error)
    assert asked_for(error) == asked


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(28, "full")])
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert not is_exhaustion(error)


def situation(**changes: Any) -> Situation:
    train = replace(TRAIN, micro_batch_tokens=2048, gradient_checkpointing=False, max_length=512)
    plan = Plan({}, {}, {}, train, (), MemoryEstimate({"weights": 2**30, "activations": 3 * 2**30, "logits": 5}))
    made = Situation("forward_backward", 11, plan, 8 * 2**30, 7 * 2**30, int(7.5 * 2**30), 10, 1000, 400, "train:3")
    return replace(made, **changes)


def test_the_line_has_the_figures_and_the_order() -> None:
    error = exhausted(RuntimeError(HOST), situation())
    assert error.exit_code == 1
    assert str(error) == (
        "forward_backward ran out of memory at step 12, asking for 5.00 GiB more: the process held 7.00 GiB (peak 7.50 "
        "GiB) of 8.00 GiB, planned were 4.00 GiB (activations 3.00 GiB, weights 1.00 GiB), longest row 400 tokens "
        "(train:3) (in this order: lower train.micro_batch_tokens from 2048 to 1024; set "
        "train.gradient_checkpointing=true; lower train.max_length from 512 to 200; give the process more memory)"
    )


def test_only_what_can_help_is_advised() -> None:
    train = replace(situation().plan.train, micro_batch_tokens=400, gradient_checkpointing=True)
    tight = situation(plan=replace(situation().plan, train=train), host=False)
    assert ladder(tight) == ["lower train.max_length from 512 to 200", "take a device with more memory"]
    assert "low-rank adapter" in ladder(situation(trained=900))[2]
    assert ladder(situation(call="step"))[0].startswith("train fewer than the")
    assert ladder(situation(call="generate", longest=0))[0].startswith("generate fewer prompts")


def test_a_failed_call_changes_nothing_and_the_next_one_works(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, data = kit.engine(micro_batch_tokens=40), kit.data()
    truth = kit.engine(micro_batch_tokens=40)
    for one in (engine, truth):
        one.forward_backward(data, kit.nll)
        one.step()
    before = kit.weights(engine)
    outputs, calls = engine._runner._network.outputs, []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # a later micro-batch: the first has left gradients behind
            raise RuntimeError(HOST)
        return outputs(*args, **kwargs)

    monkeypatch.setattr(engine._runner._network, "outputs", full)
    with pytest.raises(EngineError, match="forward_backward ran out of memory at step 2, asking for 5"):
        engine.forward_backward(data, kit.nll)
    assert kit.relative(kit.weights(engine), before) == 0 and not kit.gradients(engine)
    for one in (engine, truth):
        one.forward_backward(data, kit.nll)
        one.step()
    assert kit.relative(kit.weights(engine), kit.weights(truth)) == 0


def test_the_graph_of_a_failed_call_is_given_back() -> None:
    import weakref

    class Held:
        pass

    kept: list[Any] = []

    class Engine:
        @guarded("forward")
        def forward(self) -> None:
            held = Held()
            kept.append(weakref.ref(held))
            raise MemoryError

    import finetooth_torch.exhaustion as module

    original = module.situation
    module.situation = lambda *given: situation()  # type: ignore[assignment]
    try:
        with pytest.raises(EngineError) as caught:
            Engine().forward()
    finally:
        module.situation = original
    assert caught.value is not None and kept[0]() is None


def test_an_update_that_breaks_off_is_never_kept(kit: SimpleNamespace, tmp_path: Path) -> None:
    for moved, kept in ((True, False), (False, True)):
        engine, data = kit.engine(), kit.data()
        engine.forward_backward(data, kit.nll)

        def update(*args: Any, engine: Any = engine, moved: bool = moved) -> None:
            if moved:
                with torch.no_grad():
                    engine._parts.parameters.masters[0].add_(1.0)
            raise MemoryError

        engine._parts.optimizer.step = update
        with pytest.raises(EngineError, match="step ran out of memory at step 1"):
            engine.step()
        with pytest.raises(EngineError, match="may be half updated"):
            engine.save(tmp_path / f"state-{moved}")
        if kept:
            engine.export(tmp_path / "weights")
        else:
            with pytest.raises(EngineError, match="the weights may be half updated"):
                engine.export(tmp_path / "weights")
