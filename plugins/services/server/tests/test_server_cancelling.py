"""Calls that their clients want no more: what waits fails, what is executed stops, and nothing else is touched."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Sampling
from finetooth_server.faults import Unknown
from finetooth_server.keys import Caller

ME = Caller("local", "", frozenset({"train", "sample", "read"}))
OTHER = Caller("other", "", frozenset({"train", "sample", "read"}))


def made(service: Any, ask: SimpleNamespace) -> str:
    call = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test")
    ask.result(service, ME, call)
    return str(call.queue)


def test_a_call_that_waits_is_cancelled_and_those_behind_it_go_on(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    model = made(service, ask)
    second = service.submit(ME, model, "zero_grad", {}, seq=2, face="test")  # waits for the first
    third = service.submit(ME, model, "logprobs", {"data": ask.sent(ask.data(0))}, seq=3, face="test")
    with pytest.raises(Unknown, match="no call"):
        service.cancel(OTHER, second.id)
    service.cancel(ME, second.id)
    service.submit(ME, model, "zero_grad", {}, seq=1, face="test")
    with pytest.raises(RuntimeError, match="the call was cancelled"):
        ask.result(service, ME, second)
    assert ask.result(service, ME, third)
    service.cancel(ME, third.id)  # it is finished, and stays what it is
    assert ask.result(service, ME, third)


def test_a_sampling_call_leaves_its_batch_and_others_get_what_they_get_alone(start: Any, ask: SimpleNamespace) -> None:
    service = start(limits={"tokens": 2**24})
    service.open_sampler(ME, service.open_session(ME), "s", base="tiny")
    one, many = Sampling(max_tokens=20, seed=1), Sampling(max_tokens=250, n=64, seed=2, stop_ids=())
    alone = ask.result(service, ME, service.sample(ME, "s", [5, 6], one, seeded=True, face="test"))
    long = service.sample(ME, "s", [7], many, seeded=True, face="test")
    beside = service.sample(ME, "s", [5, 6], one, seeded=True, face="test")
    service.cancel(ME, long.id)
    with pytest.raises(RuntimeError, match="the call was cancelled"):
        ask.result(service, ME, long)
    have = ask.result(service, ME, beside)
    assert have["completions"][0]["tokens"] == alone["completions"][0]["tokens"]
    assert service.writer.wait_idle()
    assert np.isfinite(have["completions"][0]["logprobs"]).all()


def at_part(service: Any, number: int, act: Any) -> None:
    """Do something when a call asks for its part of this number."""
    asked, count = service.registry.asked, 0

    def acting() -> bool:
        nonlocal count
        count += 1
        if count == number:
            act(service.writer._scheduler._at_work.call)
        return bool(asked())

    service.registry.asked = acting


def learns(ask: SimpleNamespace, seed: int, rows: int = 60) -> dict[str, Any]:
    return {"data": ask.sent(ask.data(seed, rows)), "loss": "cross_entropy"}


@pytest.mark.parametrize("operation", ["forward_backward", "forward", "logprobs", "generate"])
def test_a_call_that_is_executed_stops_and_leaves_the_model_as_it_was(
    small_parts: Any, ask: SimpleNamespace, tmp_path: Any, operation: str
) -> None:
    ended = []
    for cancels in (False, True):
        service = small_parts(tmp_path / str(cancels))
        model = made(service, ask)
        ask.result(service, ME, service.submit(ME, model, "forward_backward", learns(ask, 0, 3), face="test"))
        if cancels:
            at_part(service, 4, lambda call, service=service: service.cancel(ME, call))
            arguments = {"prompts": [[5, 6]], "sampling": {"max_tokens": 99, "stop_ids": []}}
            call = service.submit(
                ME, model, operation, arguments if operation == "generate" else learns(ask, 1), face="test"
            )
            with pytest.raises(RuntimeError, match="user: the call was cancelled, and changed nothing"):
                ask.result(service, ME, call)
            service.cancel(ME, call.id)  # once more: it stays as it is
        steps = [("forward_backward", learns(ask, 2, 3)), ("step", {}), ("logprobs", learns(ask, 3, 3))]
        ended.append([ask.result(service, ME, service.submit(ME, model, *one, face="test")) for one in steps])
    assert ended[0] == ended[1]


def test_closing_a_model_stops_its_call_and_lets_go_of_it(small_parts: Any, ask: SimpleNamespace) -> None:
    service = small_parts()
    model = made(service, ask)
    at_part(service, 3, lambda call: service.close_model(ME, model))
    running = service.submit(ME, model, "forward_backward", learns(ask, 0), face="test")
    behind = service.submit(ME, model, "step", {}, face="test")
    for call in (running, behind):
        with pytest.raises(RuntimeError, match="the model was closed"):
            ask.result(service, ME, call)
    assert service.writer.wait_idle() and service.registry.held == 0
    assert not list((service.settings.folder / "snapshots").glob("*"))


def test_a_server_that_stops_leaves_the_call_at_hand_to_the_next_one(
    small_parts: Any, ask: SimpleNamespace, tmp_path: Any
) -> None:
    folder, found = tmp_path / "server", []
    service = small_parts(folder)
    model = made(service, ask)
    stopping = threading.Event()
    at_part(service, 3, lambda call: (stopping.set(), setattr(service.writer, "_ending", True)))
    running = service.submit(ME, model, "forward_backward", learns(ask, 0), face="test")
    assert stopping.wait(60)
    service.stop()
    service = small_parts(folder)
    found.append(ask.result(service, ME, running))
    found.append(ask.result(service, ME, service.submit(ME, model, "step", {}, face="test")))
    alone = small_parts(tmp_path / "alone")
    other = made(alone, ask)
    for one, want in zip((("forward_backward", learns(ask, 0)), ("step", {})), found, strict=True):
        assert ask.result(alone, ME, alone.submit(ME, other, *one, face="test")) == want


def test_a_step_that_was_cancelled_leaves_the_gradients_to_a_replay_too(start: Any, ask: SimpleNamespace) -> None:
    service = start()
    model = made(service, ask)
    ask.result(service, ME, service.submit(ME, model, "forward_backward", learns(ask, 0, 3), seq=1, face="test"))
    step = service.submit(ME, model, "step", {}, seq=3, face="test")  # waits for the second
    service.cancel(ME, step.id)
    service.submit(ME, model, "logprobs", learns(ask, 1, 1), seq=2, face="test")
    with pytest.raises(RuntimeError, match="cancelled"):
        ask.result(service, ME, step)
    service.registry.forget(model)  # as after a crash: it comes back from the log
    stepped = ask.result(service, ME, service.submit(ME, model, "step", {}, face="test"))
    assert stepped["grad_norm"] > 0


def test_clients_cancel_what_they_stream(serve: Any, recipe: dict[str, Any], tmp_path: Any) -> None:
    import finetooth
    from finetooth_server.settings import Settings

    served = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    with finetooth.Client(served.url, patience=30) as client:
        sampler = client.sampler("tiny")
        stream = sampler.stream([5, 6], Sampling(max_tokens=200, n=32, stop_ids=()))
        assert client.cancel(stream.call) in ("failed", "queued")
        with pytest.raises(Exception, match="the call was cancelled"):
            list(stream)
