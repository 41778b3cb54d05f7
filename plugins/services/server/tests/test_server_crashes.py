"""A call that ends the server is executed twice at most, and takes no other call with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from finetooth_hooks import Sampling
from finetooth_server import writer
from finetooth_server.calls import in_turn
from finetooth_server.commands.calls import command
from finetooth_server.keys import Caller
from finetooth_server.log import CRASHES, Due, Log
from finetooth_server.service import Service
from finetooth_server.settings import Settings

BEGIN = Log.begin
ME = Caller("local", "", frozenset({"train", "sample", "read"}))


@pytest.fixture
def stopped(context: Any, recipe: dict[str, Any], tmp_path: Path) -> Any:
    """A service that takes calls and executes none yet."""
    service = Service(context, Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    yield service
    service.stop()


def sampler(service: Any, caller: Caller = ME) -> str:
    session = service.open_session(caller)
    service.open_sampler(caller, session, f"{session}-s", base="tiny")
    return f"{session}-s"


def sample(service: Any, id_: str, token: int = 5, caller: Caller = ME, **more: Any) -> Any:
    sampling = Sampling(**{"max_tokens": 2, "seed": 1, **more})
    return service.sample(caller, id_, [token, 6], sampling, seeded=True, face="test")


def crashed(service: Any, *calls: Any, times: int = 1, alone: bool = False) -> None:
    """The server ended while these were executed, beside others or alone."""
    due = [Due(call.id, call.tenant, call.queue, call.seq, call.operation, None, "queued", None) for call in calls]
    met = {call.id: call.begun for call in service.log.waiting()}
    for n in range(times):
        if alone:
            service.log.isolate(replace(due[0], begun=met[due[0].id] + n), True)
        BEGIN(service.log, due)


def test_a_call_that_ended_the_server_twice_fails_and_the_queue_goes_on(stopped: Any, ask: SimpleNamespace) -> None:
    made = stopped.create_model(ME, stopped.open_session(ME), "tiny", {}, face="test")
    poison = stopped.submit(ME, made.queue, "forward_backward", _rows(ask), face="test")
    crashed(stopped, poison)
    crashed(stopped, poison, alone=True)
    good = stopped.submit(ME, made.queue, "forward_backward", _rows(ask), face="test")
    stopped.start()
    with pytest.raises(RuntimeError, match=r"the server ended 2 times while it was executed"):
        ask.result(stopped, ME, poison)
    assert ask.result(stopped, ME, good)["targets"] > 0


@pytest.mark.parametrize("times", [1, 2, 5])
def test_crashes_beside_others_condemn_nobody(stopped: Any, ask: SimpleNamespace, times: int) -> None:
    made = stopped.create_model(ME, stopped.open_session(ME), "tiny", {}, face="test")
    call = stopped.submit(ME, made.queue, "forward_backward", _rows(ask), face="test")
    sampled = sample(stopped, sampler(stopped))
    crashed(stopped, made, call, sampled, times=times)
    stopped.start()
    assert ask.result(stopped, ME, call)["targets"] > 0
    assert ask.result(stopped, ME, sampled)["completions"]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """At each beginning of calls: the numbers of those that are under way."""
    found: list[tuple[int, ...]] = []
    ways: dict[str, int] = {}
    begin, finish, finish_all = Log.begin, Log.finish, Log.finish_all

    def begun(log: Log, due: Sequence[Due]) -> None:
        ways.update({call.id: call.seq for call in due})
        found.append(tuple(sorted(ways.values())))
        begin(log, due)

    def finished(log: Log, call: Due, *args: Any, **more: Any) -> None:
        ways.pop(call.id, None)
        finish(log, call, *args, **more)

    def all_finished(log: Log, ended: Sequence[tuple[Due, Any]]) -> None:
        for call, _ in ended:
            ways.pop(call.id, None)
        finish_all(log, ended)

    for name, seen in (("begin", begun), ("finish", finished), ("finish_all", all_finished)):
        monkeypatch.setattr(Log, name, seen)
    return found


def test_calls_of_a_crash_are_executed_one_by_one(
    stopped: Any, ask: SimpleNamespace, executed: list[tuple[int, ...]]
) -> None:
    id_ = sampler(stopped)
    suspects = [sample(stopped, id_, token) for token in (5, 7, 9)]
    made = [stopped.create_model(ME, stopped.open_session(ME), "tiny", {}, face="test") for _ in range(2)]
    crashed(stopped, *suspects, *made)
    fresh = [sample(stopped, id_, token) for token in (11, 13)]
    stopped.start()
    for call in (*suspects, *fresh):
        assert len(ask.result(stopped, ME, call)["completions"][0]["tokens"]) > 0
    for call in made:
        ask.result(stopped, ME, call)
    assert [len(ways) for ways in executed[:5]] == [1] * 5
    assert executed[5] == (3, 4)


def test_what_a_crash_left_goes_on_with_all_after_some_seconds(
    stopped: Any, ask: SimpleNamespace, executed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ALONE", 0.0)
    id_ = sampler(stopped)
    suspects = [sample(stopped, id_, token) for token in (5, 7, 9)]
    crashed(stopped, *suspects)
    fresh = [sample(stopped, id_, token) for token in (11, 13)]
    stopped.start()
    for call in (*suspects, *fresh):
        assert len(ask.result(stopped, ME, call)["completions"][0]["tokens"]) > 0
    assert executed[0] == (0, 1, 2, 3, 4)


def test_a_call_that_was_begun_alone_and_goes_on_with_all_is_not_condemned_by_the_next_crash(
    stopped: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ALONE", 0.05)
    told: list[tuple[bool, list[tuple[int, int]]]] = []
    real = Log.isolate

    def isolate(log: Log, call: Due, alone: bool) -> None:
        real(log, call, alone)
        told.append((alone, [(one.begun, one.alone) for one in log.suspects()]))

    monkeypatch.setattr(Log, "isolate", isolate)
    call = sample(stopped, sampler(stopped), max_tokens=200, n=4)
    crashed(stopped, call)
    stopped.start()
    assert ask.result(stopped, ME, call)["completions"]
    assert told == [(True, [(1, 2)]), (False, [(2, 0)])]  # the second time it is under way, and not alone any more


def test_the_suspect_that_met_most_crashes_comes_first_and_tenants_take_turns(stopped: Any) -> None:
    other = stopped.keys.caller(stopped.keys.create("vision", ("sample",)), keyless=False)
    mine, theirs = sampler(stopped), sampler(stopped, other)
    calls = [sample(stopped, mine, token) for token in (5, 7)]
    last, worst = sample(stopped, theirs, 9, other), sample(stopped, mine, 11)
    crashed(stopped, *calls, last, worst)
    crashed(stopped, worst)
    assert [call.id for call in in_turn(stopped.log.suspects())] == [worst.id, calls[0].id, last.id, calls[1].id]


def test_the_one_that_ends_the_server_again_is_the_only_one_that_fails(stopped: Any, ask: SimpleNamespace) -> None:
    id_ = sampler(stopped)
    innocent, poison = sample(stopped, id_, 5), sample(stopped, id_, 7)
    crashed(stopped, innocent, poison)
    crashed(stopped, poison, alone=True)
    stopped.start()
    assert ask.result(stopped, ME, innocent)["completions"]
    with pytest.raises(RuntimeError, match="the server ended 2 times"):
        ask.result(stopped, ME, poison)


def test_a_stop_is_no_crash(start: Any, ask: SimpleNamespace, tmp_path: Path) -> None:
    for _ in range(CRASHES + 1):
        service = start(tmp_path / "a")
        id_ = sampler(service)
        call = sample(service, id_, max_tokens=200, n=4)
        while service.writer._turns.count == 0 and service.log.fetch(ME, call.id).state == "queued":
            pass
        service.stop()
    service = start(tmp_path / "a")
    assert ask.result(service, ME, call)["completions"]
    assert [one.begun for one in service.log.waiting()] == []


def test_what_a_stop_left_counts_as_not_begun(stopped: Any, ask: SimpleNamespace) -> None:
    made = stopped.create_model(ME, stopped.open_session(ME), "tiny", {}, face="test")
    call = stopped.submit(ME, made.queue, "forward_backward", _rows(ask), face="test")
    for _ in range(CRASHES + 1):
        crashed(stopped, call, alone=True)
        stopped.log.leave([Due(call.id, call.tenant, call.queue, call.seq, call.operation, None, "queued", None)])
    stopped.start()
    assert ask.result(stopped, ME, call)["targets"] > 0


def test_calls_of_a_revoked_key_are_not_executed(stopped: Any, ask: SimpleNamespace) -> None:
    key = stopped.keys.create("vision", ("sample",))
    caller = stopped.keys.caller(key, keyless=False)
    call = sample(stopped, sampler(stopped, caller), caller=caller)
    stopped.keys.revoke(key.split("_")[1])
    stopped.start()
    with pytest.raises(RuntimeError, match="the key that it came with was revoked"):
        ask.result(stopped, caller, call)


def test_ft_calls_lists_and_drops(stopped: Any, ask: SimpleNamespace) -> None:
    folder = str(stopped.settings.folder)

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command, [*arguments, "--folder", folder], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "no call waits" in run("list")
    id_ = sampler(stopped)
    call, other = sample(stopped, id_), sample(stopped, id_, 9)
    crashed(stopped, call)
    first, second = run("list").splitlines()
    assert first.startswith(call.id) and "sample" in first and "ended 1 times" in first and second.startswith(other.id)
    assert "will fail" in run("drop", call.id)
    assert "dropped" in run("list")
    with pytest.raises(Exception, match="no call 'nothing' waits"):
        run("drop", "nothing")
    stopped.start()
    with pytest.raises(RuntimeError, match="the operator of the server dropped"):
        ask.result(stopped, ME, call)
    assert ask.result(stopped, ME, other)["completions"]


def _rows(ask: SimpleNamespace) -> dict[str, Any]:
    return {"data": ask.sent(ask.data(0)), "loss": "cross_entropy"}


def test_sessions_whose_heartbeat_stopped_are_ended(
    start: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetooth_server import service as service_module
    from finetooth_server.keeping import pruning

    service = start(limits={"models": 1})
    session, quiet = service.open_session(ME), service.open_session(ME)
    service.note_contact(ME, session, heartbeat=True)
    call = service.create_model(ME, session, "tiny", {}, face="test")
    ask.result(service, ME, call)
    with pytest.raises(Exception, match="1 models are open"):
        service.create_model(ME, quiet, "tiny", {}, face="test")
    later = service_module.now() + service.settings.limits.silent + 1
    monkeypatch.setattr(pruning, "now", lambda: later)
    service.pruner.end_silent()
    assert service.model(ME, call.queue).closed
    with pytest.raises(Exception, match="no session"):
        service.note_contact(ME, session)
    ask.result(service, ME, service.create_model(ME, quiet, "tiny", {}, face="test"))  # never sent one: it goes on
    service.finish_session(ME, quiet)
    assert service.models(ME) == []
    assert asyncio.run(service.log.wait(ME, call.id, 0)).state == "done"


def test_models_of_clients_that_went_away_make_room(
    start: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next client need not wait for as long as a session may be silent."""
    from finetooth_server import service as service_module
    from finetooth_server.keeping import pruning

    service = start(limits={"models": 1})
    left, after = service.open_session(ME), service.open_session(ME)
    service.note_contact(ME, left, heartbeat=True)
    first = service.create_model(ME, left, "tiny", {}, face="test")
    with pytest.raises(Exception, match="1 models are open"):
        service.create_model(ME, after, "tiny", {}, face="test")
    later = service_module.now() + service.settings.limits.left + 1
    monkeypatch.setattr(pruning, "now", lambda: later)
    service.create_model(ME, after, "tiny", {}, face="test")
    assert service.model(ME, first.queue).closed and not service.model(ME, after).closed


def test_sessions_of_clients_that_went_away_make_room(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetooth_server import service as service_module
    from finetooth_server.keeping import pruning

    service = start(limits={"sessions": 2})
    for _ in range(2):
        service.open_session(ME, heartbeat=True)
    with pytest.raises(Exception, match="2 sessions are at work"):
        service.open_session(ME)
    later = service_module.now() + service.settings.limits.left + 1
    monkeypatch.setattr(pruning, "now", lambda: later)
    service.open_session(ME)
