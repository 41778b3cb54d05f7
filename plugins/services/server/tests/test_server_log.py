"""The log of calls: a call is finished once, whoever finishes it a second time."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_server.encryption.values import Values
from finetooth_server.faults import TooMuch, Unknown
from finetooth_server.keeping.records import Records, models
from finetooth_server.keys import Caller
from finetooth_server.log import Log
from finetooth_server.settings import Settings
from sqlalchemy import insert, select

ME = Caller("vision", "", frozenset({"train"}))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """With one model, `m`."""
    folder = tmp_path / "server"
    folder.mkdir()
    records = Records(Settings(folder, {}).database_url)
    row = {"id": "m", "tenant": "vision", "session": "s", "base": "tiny", "recipe": "{}", "about": "{}", "created": 0.0}
    with records.write() as connection:
        connection.execute(insert(models).values({**row, "closed": False}))
    return Log(records, Values(records, None), most=10, kept=3600.0)


def test_the_first_result_of_a_call_stands(log: Log) -> None:
    call = log.submit("vision", "m", 0, "step", {}, face="test")
    due = log.next_of("m")
    assert due is not None and due.id == call.id
    log.finish(due, {"step": 1}, applied=0)
    log.finish(due, {"step": 2}, applied=7)  # as after a crash between two servers
    log.finish(due, None, error="too late", category="server", applied=9)
    log.finish_all([(due, {"step": 3})])
    found = log.fetch(ME, call.id)
    assert (found.state, found.result, found.error) == ("done", {"step": 1}, "")
    with log._records.read() as connection:
        assert connection.scalar(select(models.c.applied)) == 0  # nor does the model move on


def test_a_failure_stands_too(log: Log) -> None:
    call = log.submit("vision", "m", 0, "step", {}, face="test")
    due = log.next_of("m")
    assert due is not None
    log.finish(due, None, error="no gradients", category="user", applied=0)
    log.finish(due, {"step": 1}, applied=1)
    found = log.fetch(ME, call.id)
    assert (found.state, found.result, found.error, found.category) == ("failed", None, "no gradients", "user")


def test_a_call_of_another_tenant_is_unknown(log: Log) -> None:
    call = log.submit("vision", "m", 0, "step", {}, face="test")
    with pytest.raises(Unknown, match="no call"):
        log.fetch(Caller("search", "", frozenset({"admin"})), call.id)


def test_a_tenant_has_a_bounded_number_of_calls_that_wait(log: Log) -> None:
    for seq in range(10):
        log.submit("vision", "m", seq, "step", {}, face="test")
    with pytest.raises(TooMuch, match="10 calls are waiting"):
        log.submit("vision", "m", 10, "step", {}, face="test")
    assert log.submit("vision", "m", 9, "step", {}, face="test").seq == 9  # the same call again is no new one
    log.submit("search", "other", 0, "step", {}, face="test")  # nor are others kept out
    due = log.next_of("m")
    assert due is not None
    log.finish(due, {"step": 1}, applied=0)
    assert log.submit("vision", "m", 10, "step", {}, face="test").seq == 10


def test_sampling_calls_are_taken_one_of_each_tenant_in_turn(log: Log) -> None:
    """Whoever has many, and came first, does not keep the others out."""
    log._most = 100
    for n in range(40):
        log.submit("many", "sampler:a", None, "sample", {"n": n}, face="test", batch="k")
    for name in ("one", "two"):
        log.submit(name, f"sampler:{name}", None, "sample", {"n": 0}, face="test", batch="k")
    found = log.waiting_in("k", [], before=float("inf"), most=5)
    assert [call.tenant for call in found] == ["many", "one", "two", "many", "many"]
    assert [call.seq for call in found if call.tenant == "many"] == [0, 1, 2]
    again = log.waiting_in("k", [call.id for call in found], before=float("inf"), most=2)
    assert [(call.tenant, call.seq) for call in again] == [("many", 3), ("many", 4)]
