"""Running out of memory: one line that says what to change, and nothing lost."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import EngineError, MemoryEstimate, Plan, Sampling
from finetooth_kit.fake_context import TRAIN
from finetooth_modelfiles.exhaustion import Situation, exhausted, ladder, requested_bytes
from finetooth_steps.kept_prompts import KeptPrompts
from finetooth_torch.device.exhaustion import guarded, is_exhaustion
from finetooth_torch.generation.rows_in_progress import Writing

HOST = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 5368709120 bytes. Error code 12"  # noqa: E501
DEVICE = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.80 GiB"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError(HOST), 5 * 2**30),
        (torch.OutOfMemoryError(DEVICE), int(2.5 * 2**30)),
        (MemoryError(), 0),
        (np._core._exceptions._ArrayMemoryError((4,), np.dtype("f4")), 16),
        (OSError(12, "Cannot allocate memory"), 0),
        (RuntimeError("could not create a memory object"), 0),
    ],
)
def test_what_says_that_memory_is_out_is_known(error: Exception, asked: int) -> None:
    assert is_exhaustion(error)
    assert requested_bytes(error) == asked


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(28, "full")])
def test_nothing_else_is_taken_for_it(error: Exception) -> None:
    assert not is_exhaustion(error)


def situation(**changes: Any) -> Situation:
    train = replace(TRAIN, micro_batch_tokens=2048, gradient_checkpointing=False, max_length=512)
    plan = Plan({}, {}, {}, train, (), MemoryEstimate({"weights": 2**30, "activations": 3 * 2**30, "logits": 5}))
    made = Situation("forward_backward", 11, plan, 8 * 2**30, 7 * 2**30, int(7.5 * 2**30), 10, 1000, 400, "train:3")
    return replace(made, **changes)


@pytest.mark.parametrize(("host", "used", "others"), [(False, 1, True), (False, 3, False), (True, 1, False)])
def test_a_device_that_others_fill_is_said_first(*, host: bool, used: int, others: bool) -> None:
    """Of 8 GiB this process holds little, and asked for 2 more."""
    now = situation(host=host, used=used * 2**30, peak=used * 2**30)
    asked = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
    action = exhausted(torch.OutOfMemoryError(asked), now).action
    assert action.startswith("in this order: end other programs") is others
    assert "lower train.micro_batch_tokens" in action
    assert is_exhaustion(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


def test_the_line_has_the_figures_and_the_order() -> None:
    error = exhausted(RuntimeError(HOST), situation())
    assert error.exit_code == 1
    assert str(error) == (
        "forward_backward ran out of memory at step 12, asking for 5.37 GB more: the process held 7.52 GB (peak 8.05 "
        "GB) of 8.59 GB, planned were 4.29 GB (activations 3.22 GB, weights 1.07 GB), longest row 400 tokens "
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


@pytest.mark.parametrize(("longest", "to"), [(0, 128), (400, 128), (200, 100), (60, None)])
def test_where_answers_are_sampled_these_become_shorter(longest: int, to: int | None) -> None:
    """`train.max_length` bounds no sampled row."""
    plan = replace(situation().plan, options={"method": {"max_completion_length": 256}})
    advice = "; ".join(ladder(situation(plan=plan, longest=longest)))
    assert "train.max_length" not in advice
    assert ("completion" in advice) is (to is not None)
    assert to is None or f"lower method.max_completion_length from 256 to {to}" in advice


def test_where_weights_fill_the_memory_no_smaller_portion_is_advised() -> None:
    parts = {"weights": 5 * 2**30, "optimizer": 3 * 2**30, "activations": 2**30}
    plan = replace(situation().plan, memory=MemoryEstimate(parts))
    advice = "; ".join(ladder(situation(plan=plan, trained=900, host=False)))
    assert "micro_batch" not in advice and "checkpointing" not in advice and "max_length" not in advice
    assert "low-rank adapter; store the base in fewer bits" in advice and "a device with more memory" in advice
    roomy = replace(plan, memory=MemoryEstimate({**parts, "optimizer": 2**30}))
    assert "micro_batch_tokens from 2048" in "; ".join(ladder(situation(plan=roomy)))
    moments = replace(plan, memory=MemoryEstimate({**parts, "weights": 2**30, "optimizer": 7 * 2**30}))
    assert "an optimizer that keeps less" in "; ".join(ladder(situation(plan=moments)))


@pytest.mark.parametrize("call", ["building the engine", "load", "snapshot", "export", "save", "restore"])
def test_what_holds_all_that_trains_depends_on_no_portion(call: str) -> None:
    advice = "; ".join(ladder(situation(call=call)))
    assert "micro_batch" not in advice and "checkpointing" not in advice and "max_length" not in advice
    said = str(exhausted(RuntimeError(HOST), situation(call=call, step=0)))
    assert said.startswith(f"{call} ran out of memory, asking for 5.37 GB more: the process held")
    assert f"{call} ran out of memory after step 11" in str(exhausted(RuntimeError(HOST), situation(call=call)))


@pytest.mark.slow
def test_building_an_engine_that_finds_no_memory_names_it(kit: SimpleNamespace) -> None:
    def full(model: Any) -> None:
        raise RuntimeError(HOST)

    with pytest.raises(EngineError, match=r"building the engine ran out of memory, asking for 5\.37 GB") as caught:
        kit.engine(prepare=full)
    assert caught.value.exit_code == 1 and "micro_batch" not in str(caught.value)

    def broken(model: Any) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        kit.engine(prepare=broken)


def trained(kit: SimpleNamespace, **how: Any) -> Any:
    """An engine after a step."""
    engine = kit.engine(**how)
    engine.forward_backward(kit.data(), kit.nll)
    engine.step()
    return engine


def as_if_on_a_gpu(engine: Any) -> Any:
    """It believes its device to be one; its tensors are where they are."""
    engine._parts = replace(engine._parts, device=torch.device("cuda"))
    return engine


class Fails:
    """Runs out of memory at the first calls."""

    def __init__(self, function: Any, times: int = 1) -> None:
        self.function, self.left, self.seen = function, times, []  # type: ignore[var-annotated]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.left:
            self.left -= 1
            raise torch.OutOfMemoryError(DEVICE)
        return self.function(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["snapshot", "save", "load", "export", "restore", "rollback"])
def test_everything_that_takes_memory_is_guarded(
    kit: SimpleNamespace, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetooth_torch.engine as module

    engine = trained(kit)
    state, path = engine.snapshot(), tmp_path / "it"
    engine.export(tmp_path / "artifact")
    engine.save(tmp_path / "state")
    always = Fails(None, times=9)
    for name in ("state_of", "read_state", "restore_state"):
        monkeypatch.setattr(module, name, always)
    monkeypatch.setattr(kit.adapter, "export", always)
    monkeypatch.setattr(kit.adapter, "restore", always)
    given = {"snapshot": (), "rollback": (state,), "load": (tmp_path / "state",), "restore": (tmp_path / "artifact",)}
    with pytest.raises(EngineError, match=f"{call} ran out of memory after step 1, asking for 2.68 GB more"):
        getattr(engine, call)(*given.get(call, (path,)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_export_that_finds_no_room_on_the_device_goes_through_the_host(
    kit: SimpleNamespace, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = trained(kit, precision=precision, adapter=kit.adapter(full=True))
    engine.export(tmp_path / "plain")
    before, where = kit.weights(engine), {id(p): p.data_ptr() for p in engine._parts.network.model.parameters()}
    written: list[set[int]] = []
    export = kit.adapter.export

    def watched(adapter: Any, model: Any, folder: Path, info: Any) -> None:
        written.append({p.data_ptr() for p in model.parameters()})
        export(adapter, model, folder, info)

    once = Fails(watched)
    monkeypatch.setattr(kit.adapter, "export", lambda *args: once(*args))
    as_if_on_a_gpu(engine).export(tmp_path / "through")
    assert not written[0] & set(where.values())  # copies
    assert {id(p): p.data_ptr() for p in engine._parts.network.model.parameters()} == where
    assert kit.relative(kit.weights(engine), before) == 0
    same = [(tmp_path / name / "trained.safetensors").read_bytes() for name in ("plain", "through")]
    assert same[0] == same[1]


def test_an_export_takes_no_copy_of_what_trains(kit: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    for full in (True, False):
        engine = trained(kit, precision="bf16", adapter=kit.adapter(full=full))
        parameters = engine._parts.parameters
        own = {t.data_ptr() for t in (*parameters.live, *parameters.masters)}
        seen: list[int] = []

        def watched(adapter: Any, model: Any, folder: Path, info: Any, seen: list[int] = seen) -> None:
            seen += [p.data_ptr() for p in model.parameters() if p.requires_grad]

        with monkeypatch.context() as patched:
            patched.setattr(kit.adapter, "export", watched)
            engine.export(tmp_path / f"{full}")
        assert seen and set(seen) <= own


@pytest.mark.slow
def test_a_snapshot_that_finds_no_room_on_the_device_is_made_in_host_memory(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetooth_torch.engine as module

    engine = trained(kit)
    made, once = engine.snapshot(), Fails(module.state_of)
    monkeypatch.setattr(module, "state_of", once)
    kept = as_if_on_a_gpu(engine).snapshot()
    assert once.left == 0 and kept.own
    live = {p.data_ptr() for p in engine._parts.parameters.masters}
    for name, tensors in made.files.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, kept.files[name][key]) and kept.files[name][key].data_ptr() not in live


def test_a_snapshot_that_the_host_has_no_room_for_is_named(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetooth_torch.state.training_state as module

    made = replace(trained(kit).snapshot(), own=False)
    monkeypatch.setattr(module, "_on_host", Fails(None, times=9))
    with pytest.raises(EngineError, match="host memory does not suffice for a copy of all that trains"):
        made.to_host()


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_graph_of_a_failed_call_is_given_back() -> None:
    import weakref

    class Held:
        pass

    kept: list[Any] = []

    class Engine:
        _generator = SimpleNamespace(kept=KeptPrompts())
        _parts = SimpleNamespace(device=torch.device("cpu"))

        @guarded("forward")
        def forward(self) -> None:
            held = Held()
            kept.append(weakref.ref(held))
            raise MemoryError

    import finetooth_torch.device.exhaustion as module

    original = module.situation
    module.situation = lambda *given: situation()  # type: ignore[assignment]
    try:
        with pytest.raises(EngineError) as caught:
            Engine().forward()
    finally:
        module.situation = original
    assert caught.value is not None and kept[0]() is None


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Devices that were made torch's current one, in order."""
    import finetooth_torch.device.exhaustion as module

    entered: list[Any] = []

    def current(device: torch.device) -> Any:
        entered.append(device)
        return nullcontext()

    monkeypatch.setattr(module, "current", current)
    return entered


@pytest.mark.slow
def test_a_running_batch_is_guarded_and_lets_go_of_what_is_half_written(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, places: list[Any]
) -> None:
    """The second row of two finds no memory: the first has a token more by then that nobody was told of."""
    engine = kit.engine()
    sampling = Sampling(max_tokens=8, temperature=0.0)
    (whole,) = engine.generate([[3, 4, 5]], sampling)[0]
    places.clear()
    batch = engine.running_batch()
    batch.add([3, 4, 5], sampling)
    assert places == [engine._parts.device]
    batch.step()
    assert places == [engine._parts.device] * 2
    advance = Writing.step
    monkeypatch.setattr(Writing, "step", Fails(None))
    with pytest.raises(EngineError, match=r"generate ran out of memory at step 1, asking for 2\.68 GB more") as caught:
        batch.step()
    assert "generate fewer prompts at once, or lower max_tokens" in str(caught.value)
    assert len(batch) == 0 and batch.waiting == 0 and batch.step() == []
    monkeypatch.setattr(Writing, "step", advance)
    number = batch.add([3, 4, 5], sampling)
    written = []
    while len(batch):
        written += batch.step()
    assert [one.token for one in written] == list(whole.tokens) and {one.request for one in written} == {number}


@pytest.mark.slow
def test_a_request_that_finds_no_memory_is_not_half_taken(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetooth_torch.generation.joinable_batch as module

    batch = kit.engine().running_batch()
    monkeypatch.setattr(module, "row_streams", Fails(module.row_streams))
    with pytest.raises(EngineError, match="generate ran out of memory"):
        batch.add([3, 4], Sampling(max_tokens=2))
    assert len(batch) == 0 and batch.waiting == 0


@pytest.mark.slow
def test_moving_a_role_is_guarded(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, places: list[Any]) -> None:
    import finetooth_torch.engine as module

    engine = trained(kit)
    places.clear()
    monkeypatch.setattr(module, "move_copy", Fails(None))
    with pytest.raises(EngineError, match=r"move_role ran out of memory after step 1, asking for 2\.68 GB more"):
        engine.move_role("reference", 0.5)
    assert places == [engine._parts.device]


@pytest.mark.slow
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
