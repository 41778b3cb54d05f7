"""What a server forgets, what it must not forget, and that a forgotten call is never done twice."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Sampling
from finetooth_server.faults import Unknown
from finetooth_server.keeping.records import Records
from finetooth_server.keys import Caller

ME = Caller("local", "", frozenset({"train", "sample", "read"}))
OTHER = Caller("other", "", frozenset({"train", "sample", "read"}))
AT_ONCE = {"results": -1.0}
"""Results are old a second before they are delivered."""


def made(service: Any, ask: SimpleNamespace) -> str:
    call = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test")
    ask.result(service, ME, call)
    return str(call.queue)


def trained(service: Any, ask: SimpleNamespace, model: str, seqs: range) -> list[Any]:
    """forward_backward at even numbers, step at odd ones."""
    kinds: tuple[dict[str, Any], ...] = (_data(ask), {})
    names = ("forward_backward", "step")
    return [
        ask.result(service, ME, service.submit(ME, model, names[n % 2], kinds[n % 2], seq=n, face="test")) for n in seqs
    ]


def _data(ask: SimpleNamespace) -> dict[str, Any]:
    return {"data": ask.sent(ask.data(1)), "loss": "cross_entropy"}


def left(service: Any, queue: str) -> list[int]:
    """Numbers that are in the log."""
    return [call.seq for call in service.log.between(queue, 0, 10**6)]


def settled(service: Any, model: str, applied: int) -> None:
    """Wait for the snapshot that follows an answer."""
    for _ in range(200):
        if service.records.engine.connect().exec_driver_sql("SELECT max(snapshot) FROM models").scalar() == applied:
            return
        time.sleep(0.02)
    raise AssertionError("no snapshot")


def test_what_was_delivered_goes_and_is_never_done_again(start: Any, ask: SimpleNamespace) -> None:
    service = start(replay=0.0, limits=AT_ONCE)
    model = made(service, ask)
    first = service.submit(ME, model, "zero_grad", {}, seq=1, face="test")
    ask.result(service, ME, first)
    stepped = trained(service, ask, model, range(2, 4))[1]
    settled(service, model, 3)
    assert service.pruner.prune() == 4 and left(service, model) == []
    again = service.submit(ME, model, "step", {}, seq=3, face="test")
    assert again.state == "failed" and again.category == "user"
    assert again.error.startswith("call 3 was done, and its result is kept for") and "\n" not in again.error
    found = service.log.fetch(ME, again.id)  # for clients that only keep the id
    assert (found.state, found.error, found.seq) == ("failed", again.error, 3)
    for caller, id_ in ((OTHER, again.id), (ME, f"gone-4-{model}"), (ME, "gone-1-none"), (ME, first.id)):
        with pytest.raises(Unknown, match=r"^no call .*results are kept for"):
            service.log.fetch(caller, id_)
    created = service.create_model(ME, service.model(ME, model).session, "tiny", {}, id_=model, face="test")
    assert created.state == "failed" and "call 0 was done" in created.error
    assert service.model(ME, model).next_seq == 4
    following = service.submit(ME, model, "forward_backward", _data(ask), face="test")
    assert following.seq == 4 and ask.result(service, ME, following)["targets"] > 0
    assert trained(service, ask, model, range(5, 6))[0]["step"] == stepped["step"] + 1 == 2


def test_what_a_replay_needs_and_what_nobody_fetched_stays(start: Any, ask: SimpleNamespace, tmp_path: Path) -> None:
    service = start(tmp_path / "a", limits=AT_ONCE)  # no snapshots before the end
    model, calm = made(service, ask), made(service, ask)
    for one in (model, calm):
        ask.result(service, ME, service.submit(ME, one, "zero_grad", {}, seq=1, face="test"))
        trained(service, ask, one, range(2, 6))
    assert service.pruner.prune() == 0 and left(service, model) == list(range(6))
    service.registry.forget(model)  # as after a crash: it comes back from the log
    want = trained(service, ask, calm, range(6, 8))
    assert trained(service, ask, model, range(6, 8)) == want
    service.stop()  # snapshots are written
    service = start(tmp_path / "a", limits=AT_ONCE)
    service.submit(ME, model, "forward_backward", _data(ask), seq=8, face="test")
    unseen = service.submit(ME, model, "step", {}, seq=9, face="test")
    while service.model(ME, model).applied < 9:
        time.sleep(0.02)
    service.stop()
    service = start(tmp_path / "a", limits=AT_ONCE)
    service.pruner.prune()
    assert left(service, model) == [8, 9] and left(service, calm) == []
    assert service.log.fetch(ME, unseen.id).state == "done"
    service.stop()
    service = start(tmp_path / "a", limits={"undelivered": -1.0})
    service.pruner.prune()
    assert left(service, model) == []


def test_sampling_calls_go_too_and_their_numbers_stay_known(start: Any, ask: SimpleNamespace) -> None:
    service = start(limits=AT_ONCE)
    service.open_sampler(ME, service.open_session(ME), "s", base="tiny")

    def sample(seq: int | None) -> Any:
        return service.sample(ME, "s", [5, 6, 7], Sampling(max_tokens=2), seq=seq, seeded=True, face="test")

    for seq in (2, 1, 3):
        ask.result(service, ME, sample(seq))
    assert service.pruner.prune() == 3 and left(service, "sampler:s") == []
    assert [sample(seq).state for seq in (1, 3)] == ["failed", "failed"]
    assert left(service, "sampler:s") == []
    following = sample(None)
    assert following.seq == 4 and ask.result(service, ME, following)["completions"]


def test_a_closed_model_leaves_its_checkpoints_alone(start: Any, ask: SimpleNamespace, tmp_path: Path) -> None:
    service = start(tmp_path / "a", replay=0.0, limits=AT_ONCE)
    model, open_ = made(service, ask), made(service, ask)
    for one in (model, open_):
        ask.result(service, ME, service.submit(ME, one, "save", {"name": "end"}, seq=1, face="test"))
    service.close_model(ME, model)
    service.stop()
    assert len(list((tmp_path / "a" / "snapshots").iterdir())) == 2
    service = start(tmp_path / "a", limits=AT_ONCE)
    assert [folder.name for folder in (tmp_path / "a" / "snapshots").iterdir()] == [open_]
    assert len(service.checkpoints.all("local")) == 2
    service.pruner.prune()
    assert left(service, model) == []


def test_a_database_of_an_earlier_version_gets_its_new_columns(tmp_path: Path) -> None:
    file = tmp_path / "service.db"
    Records(f"sqlite:///{file}").close()
    with sqlite3.connect(file) as connection:
        connection.execute("ALTER TABLE calls DROP COLUMN delivered")
        connection.execute("ALTER TABLE samplers DROP COLUMN pruned")
        for column in ("name", "joined"):
            connection.execute(f"ALTER TABLE samplers DROP COLUMN {column}")
        connection.execute("INSERT INTO samplers VALUES ('s', 'local', 'x', 'tiny', NULL, 1.0)")
    records = Records(f"sqlite:///{file}")
    with records.read() as connection:
        assert connection.exec_driver_sql("SELECT id, pruned FROM samplers").all() == [("s", None)]
        assert connection.exec_driver_sql("SELECT delivered FROM calls").all() == []
    records.close()


def test_a_model_whose_record_was_pruned_before_it_was_let_go_of_ends_nobody(start: Any, ask: SimpleNamespace) -> None:
    """Records go in a thread of their own."""
    service = start()
    service.writer.close_models(["pruned"])
    service.writer.wait_idle()
    made(service, ask)
    assert service.writer.broken == ""
