"""Checkpoints are written beside the calls of others, and hold what their models were when their turn came."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_server.batches.scheduling import Running, Scheduler
from finetooth_server.encryption import vault
from finetooth_server.keeping.checkpoints import Checkpoints
from finetooth_server.keeping.records import Records
from finetooth_server.keys import Caller
from finetooth_server.settings import Limits

SCOPES = frozenset({"train", "sample", "read"})
ME, OTHER = Caller("local", "", SCOPES), Caller("other", "", SCOPES)
LOSS = "cross_entropy"


class Held:
    """The disk takes its time: what is written waits until it is let go."""

    def __init__(self) -> None:
        self.reached, self.free = threading.Semaphore(0), threading.Event()
        self.at_once = self.most = 0

    def __call__(self, flush: Callable[[Path], None]) -> Callable[[Path], None]:
        def slow(folder: Path) -> None:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.reached.release()
            assert self.free.wait(60)
            flush(folder)
            self.at_once -= 1

        return slow


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held()
    monkeypatch.setattr(vault, "_flush_all", held(vault._flush_all))
    yield held
    held.free.set()


def made(service: Any, ask: SimpleNamespace, who: Caller = ME) -> str:
    call = service.create_model(who, service.open_session(who), "tiny", {}, face="test")
    ask.result(service, who, call)
    return str(call.queue)


def asked(service: Any, model: str, operation: str, arguments: Any, who: Caller = ME) -> Any:
    return service.submit(who, model, operation, arguments, face="test")


def train(service: Any, ask: SimpleNamespace, model: str, n: int, who: Caller = ME) -> list[Any]:
    data = ask.sent(ask.data(n))
    return [
        asked(service, model, "forward_backward", {"data": data, "loss": LOSS}, who),
        asked(service, model, "step", {}, who),
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_checkpoint_is_written_while_others_have_their_turns_and_its_own_model_waits(
    start: Any, ask: SimpleNamespace, disk: Held
) -> None:
    service = start()
    mine, theirs = made(service, ask), made(service, ask, OTHER)
    for call in train(service, ask, mine, 0):
        ask.result(service, ME, call)
    save = asked(service, mine, "save", {"name": "a"})
    later = train(service, ask, mine, 1)
    assert disk.reached.acquire(timeout=60)
    for call in train(service, ask, theirs, 2, OTHER):
        ask.result(service, OTHER, call)
    assert {service.call(ME, call.id).state for call in (save, *later)} == {"queued"}
    assert not service.all_checkpoints(ME) and not service.writer.wait_idle(0.0)
    disk.free.set()
    saved = ask.result(service, ME, save)["checkpoint"]
    assert service.checkpoint(ME, saved).size > 0
    assert ask.result(service, ME, later[1])["step"] == 2


def test_of_a_tenants_models_one_is_written_at_a_time(start: Any, ask: SimpleNamespace, disk: Held) -> None:
    service = start()
    mine, theirs = [made(service, ask) for _ in range(3)], made(service, ask, OTHER)
    saves = [asked(service, model, "save", {"name": "a", "kind": "weights"}) for model in mine]
    other = asked(service, theirs, "save", {"name": "a"}, OTHER)
    for _ in range(2):  # one of each tenant
        assert disk.reached.acquire(timeout=60)
    end = time.monotonic() + 60
    while sum(one.aside for one in list(service.writer._scheduler._running.values())) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert not disk.reached.acquire(timeout=0.5)
    disk.free.set()
    for call in saves:
        ask.result(service, ME, call)
    ask.result(service, OTHER, other)
    assert disk.most == 2 and len(service.all_checkpoints(ME)) == 3


def test_a_quota_holds_for_saves_that_wait_for_each_other(start: Any, ask: SimpleNamespace, disk: Held) -> None:
    disk.free.set()
    service = start()
    models = [made(service, ask) for _ in range(2)]
    first = asked(service, models[0], "save", {"name": "a", "kind": "weights"})
    size = service.checkpoint(ME, ask.result(service, ME, first)["checkpoint"]).size
    service.stop()
    disk.free.clear()
    service = start(limits={"checkpoint_bytes": int(2.5 * size)})
    saves = [asked(service, model, "save", {"name": "b", "kind": "weights"}) for model in models]
    for _ in range(2):
        assert disk.reached.acquire(timeout=60)
    disk.free.set()
    ask.result(service, ME, saves[0])
    with pytest.raises(RuntimeError, match="MB are allowed"):
        ask.result(service, ME, saves[1])
    assert len(list((service.settings.folder / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_checkpoint_holds_what_its_model_was_though_it_is_trained_while_it_is_written(
    context: Any, recipe: dict[str, Any], ask: SimpleNamespace, tmp_path: Path, encrypted: bool
) -> None:
    engine, loss = context.engine(recipe), context.context(recipe).loss(LOSS)
    engine.forward_backward(ask.data(0), loss)
    engine.step()
    engine.forward_backward(ask.data(1), loss)
    engine.save(tmp_path / "then" / "state")
    engine.export(tmp_path / "then" / "weights")

    def goes_on() -> None:
        engine.step()
        engine.forward_backward(ask.data(2), loss)

    keys = None
    if encrypted:
        from finetooth_server.encryption.master import master_keys, new_key

        (tmp_path / "key").touch(mode=0o600)
        (tmp_path / "key").write_text(new_key())
        keys = master_keys(tmp_path / "key")
    kept = vault.Vault(tmp_path / "server", keys)
    records = Records(f"sqlite:///{tmp_path / 'server.db'}")
    checkpoints = Checkpoints(records, kept)
    saved = checkpoints.save(
        engine, tenant="t", model="m", base="tiny", recipe=recipe, kind="state", name="a", copied=goes_on
    )
    for part in ("state", "weights"):
        with checkpoints.reading(saved, part) as folder:
            assert content(folder) == content(tmp_path / "then" / part)
    records.close()


def test_a_crash_while_a_checkpoint_is_written_leaves_none_and_the_next_server_writes_it(
    start: Any, ask: SimpleNamespace, tmp_path: Path, disk: Held
) -> None:
    """The folder as it is on disk between the copy and its end is what SIGKILL leaves."""
    import sqlite3

    service = start()
    model = made(service, ask)
    calls = [
        *train(service, ask, model, 0),
        asked(service, model, "save", {"name": "a"}),
        *train(service, ask, model, 1),
    ]
    assert disk.reached.acquire(timeout=60)
    crash = tmp_path / "crash"
    shutil.copytree(service.settings.folder, crash, ignore=shutil.ignore_patterns("service.db*"))
    with sqlite3.connect(service.settings.folder / "service.db") as source, sqlite3.connect(crash / "service.db") as to:
        source.backup(to)
    left = [one.name for one in (crash / "checkpoints").iterdir()]
    assert left and all(name.startswith(".") for name in left)
    disk.free.set()
    ends = []
    for folder in (None, crash):  # one after the other: a process has one server, whose engines take turns
        one = service if folder is None else start(folder)
        results = [ask.result(one, ME, call) for call in calls]
        (found,) = one.all_checkpoints(ME)
        assert found.id == results[2]["checkpoint"]
        assert [place.name for place in (one.settings.folder / "checkpoints").iterdir()] == [found.id]
        ends.append((content(one.settings.folder / "checkpoints" / found.id), results[3:]))
    assert ends[0] == ends[1]


def test_a_call_that_steps_aside_wants_no_turn_and_ends_in_one() -> None:
    free, trace = threading.Event(), list[str]()
    ringing = threading.Semaphore(0)

    def execute(running: Running) -> None:
        running.call = running.queue
        if running.queue.startswith("disk"):
            scheduler.step_aside(running)
            assert free.wait(60)
        trace.append(running.queue)

    sampled = SimpleNamespace(tenants=(), step=lambda: None, spent=dict)
    scheduler = Scheduler(Limits(live=16), execute, sampled, ring=ringing.release)
    scheduler.offer("disk1", ("a", 0))
    assert scheduler.wants and scheduler.turn() is None
    assert not scheduler.wants and scheduler.running("disk1") and len(scheduler) == 1
    scheduler.offer("quick", ("b", 0))
    ended = scheduler.turn()
    assert ended is not None and ended.queue == "quick" and trace == ["quick"]
    scheduler.offer("disk2", ("a", 0))
    assert scheduler.turn() is None and not scheduler.wants
    free.set()
    for queue in ("disk1", "disk2"):
        assert ringing.acquire(timeout=60)
        while (ended := scheduler.turn()) is None:
            pass
        assert ended.queue == queue and ended.rested > 0
    assert not len(scheduler) and not list(scheduler.leave())


def test_what_stepped_aside_is_waited_for_in_the_end() -> None:
    def execute(running: Running) -> None:
        scheduler.step_aside(running)
        done.append(running.queue)

    done = list[str]()
    sampled = SimpleNamespace(tenants=(), step=lambda: None, spent=dict)
    scheduler = Scheduler(Limits(live=16), execute, sampled)
    for n in range(4):
        scheduler.offer(f"q{n}", ("a", 0))
    scheduler.turn()
    while scheduler.wants:
        scheduler.turn()
    list(scheduler.leave())
    assert sorted(done) == [f"q{n}" for n in range(4)] and not len(scheduler)
