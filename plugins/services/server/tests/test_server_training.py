"""Training through the log: the same numbers as a local engine, in order, once, and on after a crash."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import UserError
from finetooth_hooks.engine import StepSettings
from finetooth_server.faults import Unknown
from finetooth_server.keys import Caller
from finetooth_wire import wire
from safetensors.numpy import load_file

ME = Caller("local", "", frozenset({"train", "sample", "read"}))
OTHER = Caller("other", "", frozenset({"train", "sample", "read"}))


def new_model(service: Any, ask: SimpleNamespace, caller: Caller = ME, **sections: Any) -> str:
    call = service.create_model(caller, service.open_session(caller), "tiny", sections, face="test")
    ask.result(service, caller, call)
    return str(call.queue)


def plan(ask: SimpleNamespace) -> list[tuple[str, dict[str, Any]]]:
    """Calls of a client, numbers 1 to 12: fused, split in two, gradients of its own, several data before a step."""
    data = [ask.sent(ask.data(n)) for n in range(4)]
    grads = [wire.encode_array(np.full(len(d), 0.01, np.float32)) for d in ask.data(1)]
    settings = wire.encode_step_settings(StepSettings(learning_rate=3e-3, optimizer={"betas": (0.8, 0.9)}))
    return [
        ("forward_backward", {"data": data[0], "loss": "cross_entropy"}),
        ("step", {}),
        ("forward", {"data": data[1], "loss": "cross_entropy"}),
        ("forward_backward", {"data": data[2], "loss": "cross_entropy", "normalizer": "sum"}),
        ("backward", {"handle": 3}),
        ("step", {"settings": settings}),
        ("forward", {"data": data[1]}),
        ("forward", {"data": data[2]}),
        ("backward", {"handle": {"id": 7, "weights_version": 2}, "grads": grads}),
        ("zero_grad", {}),
        ("forward_backward", {"data": data[3], "loss": {"name": "cross_entropy"}}),
        ("step", {}),
    ]


def trained(service: Any, model: str, ask: SimpleNamespace, name: str = "end") -> dict[str, np.ndarray]:
    """Everything that trains, as `save` writes it."""
    saved = ask.result(service, ME, service.submit(ME, model, "save", {"name": name}, face="test"))
    folder = service.checkpoints.folder(service.checkpoint(ME, saved["checkpoint"]), "state")
    return {
        f"{file.stem}/{name}": values
        for file in sorted(folder.glob("*.safetensors"))
        for name, values in load_file(file).items()
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_calls_equal_the_same_calls_on_a_local_engine_bit_for_bit(
    start: Any, ask: SimpleNamespace, context: Any, recipe: dict[str, Any], tmp_path: Path
) -> None:
    service = start()
    model = new_model(service, ask)
    calls = [service.submit(ME, model, *one, face="test") for one in plan(ask)]
    results = [ask.result(service, ME, call) for call in calls]
    engine, loss = context.engine(recipe), context.context(recipe).loss("cross_entropy")
    first = engine.forward_backward(ask.data(0), loss)
    assert wire.decode_forward(results[0]).loss == first.loss
    for have, want in zip(wire.decode_forward(results[0]).outputs, first.outputs, strict=True):
        assert np.array_equal(have["logprobs"], want["logprobs"])
    assert wire.decode_stepped(results[1]) == engine.step()
    handle = engine.forward(ask.data(1), loss).handle
    engine.forward_backward(ask.data(2), loss, normalizer={"weights": 1.0, "none": 1.0})
    assert wire.decode_backward(results[4]) == engine.backward(handle)
    settings = StepSettings(learning_rate=3e-3, optimizer={"betas": (0.8, 0.9)})
    assert wire.decode_stepped(results[5]) == engine.step(settings=settings)
    engine.forward_backward(ask.data(3), loss)
    engine.step()
    engine.save(tmp_path / "local")
    local = {
        f"{file.stem}/{name}": values
        for file in sorted((tmp_path / "local").glob("*.safetensors"))
        for name, values in load_file(file).items()
    }
    assert same(trained(service, model, ask), local)


def test_calls_wait_for_their_number_and_count_once(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    expected, model = new_model(service, ask), new_model(service, ask)
    for one in plan(ask):
        ask.result(service, ME, service.submit(ME, expected, *one, face="test"))
    numbered = list(enumerate(plan(ask), 1))
    for seq, one in reversed(numbered):
        call = service.submit(ME, model, *one, seq=seq, face="test")
        again = service.submit(ME, model, one[0], {}, seq=seq, face="test")
        assert again.id == call.id
    for seq, one in numbered:  # a client that lost every answer sends everything again
        ask.result(service, ME, service.submit(ME, model, *one, seq=seq, face="test"))
    assert same(trained(service, model, ask), trained(service, expected, ask))


@pytest.mark.slow
@pytest.mark.parametrize("replay", [0.0, 1e9], ids=["a snapshot after every call", "no snapshot"])
@pytest.mark.parametrize("databases", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_a_crash_at_any_call_changes_no_number(
    start: Any, ask: SimpleNamespace, tmp_path: Path, databases: Any, replay: float
) -> None:
    """The folder as it is on disk after each call is what a crash leaves; a new server goes on from there."""
    database = databases.new()
    service = start(replay=replay, database=databases.url(database))
    model = new_model(service, ask)
    crashed = []
    for seq, one in enumerate(plan(ask), 1):
        ask.result(service, ME, service.submit(ME, model, *one, seq=seq, face="test"))
        if seq in (3, 5, 7, 11):
            service.writer.wake(model)
            folder = copy_of(service, tmp_path / f"crash-{replay}-{seq}")
            crashed.append((seq, folder, databases.copied(database) if database else ""))
    want = trained(service, model, ask)
    for seq, folder, database in crashed:
        other = start(folder, replay=replay, database=databases.url(database))
        for number, one in list(enumerate(plan(ask), 1))[seq - 1 :]:  # the last answer was lost too
            ask.result(other, ME, other.submit(ME, model, *one, seq=number, face="test"))
        assert same(trained(other, model, ask), want), seq


def copy_of(service: Any, folder: Path) -> Path:
    """The server's folder at a moment when no call is being executed."""
    import sqlite3

    assert service.writer.wait_idle()  # a snapshot follows the answer
    shutil.copytree(service.settings.folder, folder, ignore=shutil.ignore_patterns("service.db*"))
    if service.settings.database:
        return folder
    source = sqlite3.connect(service.settings.folder / "service.db")
    target = sqlite3.connect(folder / "service.db")
    source.backup(target)
    source.close()
    target.close()
    return folder


def test_calls_that_were_accepted_are_done_by_the_next_server(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    model = new_model(service, ask)
    service.stop()
    service = start()
    service.writer.stop()  # accepts, and does nothing
    calls = [service.submit(ME, model, *one, face="test") for one in plan(ask)[:2]]
    service.records.close()
    service = start()
    assert wire.decode_stepped(ask.result(service, ME, calls[1])).step == 1


def test_what_is_wrong_fails_its_own_call_and_the_queue_goes_on(start: Any, ask: SimpleNamespace) -> None:
    service = start(limits={"tokens": 200, "handle": 0.0})
    model = new_model(service, ask)
    data = ask.sent(ask.data(0))
    wrong = [
        ("forward_backward", {"data": [{"tokens": [1]}], "loss": "cross_entropy"}, "no 'targets'"),
        ("forward_backward", {"data": data, "loss": "crossentropy"}, "cross_entropy"),
        ("forward_backward", {"data": data}, "needs one"),
        ("forward_backward", {"data": data * 30, "loss": "cross_entropy"}, "tokens in one call"),
        ("forward_backward", {"data": data, "loss": "cross_entropy", "normalizer": {"weights": 0}}, "not above 0"),
        ("backward", {"handle": 99}, "handle 99 is unknown"),
        ("backward", {}, "handle None is unknown"),
        ("step", {}, "no gradients were accumulated"),
        ("step", {"settings": {"learningrate": 1}}, "unknown key 'learningrate'"),
        ("load", {"checkpoint": "0" * 32}, "no checkpoint"),
        ("save", {"name": "../../etc"}, "checkpoint name"),
        ("generate", {"prompts": [["a"]], "sampling": {}}, "other than numbers"),
        ("generate", {"prompts": [[1]], "sampling": {"temprature": 1}}, "temprature"),
        ("forward", {"data": data, "returns": ["logits"], "positions": [[0], [99], [0]]}, "positions"),
    ]
    calls = [service.submit(ME, model, name, arguments, face="test") for name, arguments, _ in wrong]
    for call, (_, _, message) in zip(calls, wrong, strict=True):
        with pytest.raises(RuntimeError, match=r"^user: ") as caught:
            ask.result(service, ME, call)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    handle = ask.result(service, ME, service.submit(ME, model, "forward", {"data": data}, face="test"))["handle"]
    grads = [wire.encode_array(np.ones(len(d), np.float32)) for d in ask.data(0)]
    late = service.submit(ME, model, "backward", {"handle": handle, "grads": grads}, face="test")
    with pytest.raises(RuntimeError, match="waited too long"):
        ask.result(service, ME, late)
    good = service.submit(ME, model, "forward_backward", {"data": data, "loss": "cross_entropy"}, face="test")
    assert ask.result(service, ME, good)["targets"] > 0


def test_a_tenant_sees_nothing_of_another(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    session = service.open_session(ME)
    model = new_model(service, ask)
    call = service.submit(ME, model, "save", {"name": "mine", "sampler": "s1", "kind": "weights"}, face="test")
    saved = ask.result(service, ME, call)["checkpoint"]
    theirs = service.open_session(OTHER)
    for attempt in (
        lambda: service.model(OTHER, model),
        lambda: service.submit(OTHER, model, "step", {}, face="test"),
        lambda: service.close_model(OTHER, model),
        lambda: service.log.fetch(OTHER, call.id),
        lambda: service.checkpoint(OTHER, saved),
        lambda: service.checkpoints.delete(OTHER, saved),
        lambda: service.create_model(OTHER, theirs, "tiny", {}, checkpoint=saved, face="test"),
        lambda: service.create_model(OTHER, session, "tiny", {}, face="test"),
        lambda: service.sampler(OTHER, "s1"),
        lambda: service.open_sampler(OTHER, theirs, "s2", checkpoint=saved),
        lambda: service.note_contact(OTHER, session),
    ):
        with pytest.raises(Unknown, match=r"^no "):
            attempt()
    mine = new_model(service, ask, OTHER)
    load = service.submit(OTHER, mine, "load", {"checkpoint": saved}, face="test")
    with pytest.raises(RuntimeError, match="no checkpoint"):
        ask.result(service, OTHER, load)
    assert [model.id for model in service.models(OTHER)] == [mine]
    assert service.checkpoints.all("other") == []


def test_a_session_with_a_checkpoint_drops_no_section_unsaid(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    adapter = {"name": "lora", "rank": 4, "dropout": 0.0}
    first = new_model(service, ask, adapter=adapter, train={"seed": 7})
    saved = ask.result(service, ME, service.submit(ME, first, "save", {"name": "kept"}, face="test"))["checkpoint"]

    def begin(base: str, *, restore: bool = True, **sections: Any) -> Mapping[str, Any]:
        session = service.open_session(ME)
        call = service.create_model(ME, session, base, sections, checkpoint=saved, optimizer=restore, face="test")
        ask.result(service, ME, call)
        recipe: Mapping[str, Any] = service.model(ME, call.queue).recipe
        return recipe

    slow = {"name": "adamw", "learning_rate": 1e-6}
    assert begin("tiny", adapter=adapter, train={"seed": 7})["train"]["seed"] == 7
    fresh = begin("", restore=False, optimizer=slow, schedule="constant", train={"seed": 8})
    assert (fresh["optimizer"], fresh["schedule"], fresh["train"]["seed"]) == (slow, "constant", 8)
    for base, sections, named in (
        ("other", {}, "base: the checkpoint was made on tiny"),
        ("", {"adapter": {"name": "lora", "rank": 8}}, "adapter: a session with a checkpoint"),
        ("", {"optimizer": slow}, "optimizer: a session .* or set restore_optimizer to false"),
        ("", {"train": {"seed": 8}}, "train: a session"),
    ):
        with pytest.raises(UserError, match=named):
            begin(base, **sections)


@pytest.mark.slow
def test_models_beyond_the_room_go_to_disk_and_come_back(start: Any, ask: SimpleNamespace) -> None:
    service = start(limits={"live": 1})
    lonely = start(service.settings.folder.with_name("lonely"))
    models, alone = [new_model(service, ask) for _ in range(2)], new_model(lonely, ask)
    for seq, one in enumerate(plan(ask), 1):
        for model in models:
            call = service.submit(ME, model, *one, seq=seq, face="test")
            ask.result(service, ME, call)
        ask.result(lonely, ME, lonely.submit(ME, alone, *one, seq=seq, face="test"))
    want = trained(lonely, alone, ask)
    assert all(same(trained(service, model, ask), want) for model in models)


def test_state_goes_from_one_model_to_another_between_backward_and_step(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    first, second = new_model(service, ask), new_model(service, ask)
    for one in plan(ask)[:4]:
        ask.result(service, ME, service.submit(ME, first, *one, face="test"))
    saved = ask.result(service, ME, service.submit(ME, first, "save", {"name": "middle"}, face="test"))
    ask.result(service, ME, service.submit(ME, second, "load", {"checkpoint": saved["checkpoint"]}, face="test"))
    third = service.create_model(ME, service.open_session(ME), "", {}, checkpoint=saved["checkpoint"], face="test")
    ask.result(service, ME, third)
    ends = []
    for model in (first, second, third.queue):
        stepped = ask.result(service, ME, service.submit(ME, model, "step", {}, face="test"))
        assert stepped["step"] == 2
        ends.append(trained(service, model, ask))
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])


def test_weights_alone_begin_with_a_new_optimizer(start: Any, ask: SimpleNamespace) -> None:
    """Loaded without the optimizer, a model that has trained steps on as a new one that began with those weights."""
    service = start()
    sections = {"adapter": {"name": "lora", "rank": 4, "dropout": 0.0}}
    data = ask.sent(ask.data(5))

    def run(model: str, operation: str, **arguments: Any) -> Any:
        return ask.result(service, ME, service.submit(ME, model, operation, arguments, face="test"))

    def steps(model: str, count: int) -> None:
        for _ in range(count):
            run(model, "forward_backward", data=data, loss="cross_entropy")
            run(model, "step")

    first = new_model(service, ask, **sections)
    steps(first, 2)
    kept = run(first, "save", name="kept")["checkpoint"]
    call = service.create_model(ME, service.open_session(ME), "", {}, checkpoint=kept, optimizer=False, face="test")
    ask.result(service, ME, call)
    run(first, "forward_backward", data=data, loss="cross_entropy")  # its gradients go as well
    run(first, "load", checkpoint=kept, optimizer=False)
    for model in (first, call.queue):
        steps(model, 2)
    assert same(trained(service, first, ask), trained(service, call.queue, ask))
