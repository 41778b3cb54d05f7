"""A day of clients that come and go without a word: ten thousand sessions, by a clock that the test moves."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Sampling
from finetooth_server import client_sessions, log, sampling
from finetooth_server import service as service_module
from finetooth_server.keeping import checkpoints, pruning
from finetooth_server.keeping.records import models, sessions
from finetooth_server.keys import Caller
from sqlalchemy import event, func, select

ME = Caller("local", "", frozenset({"train", "sample", "read"}))
DAY = 86400.0
SESSIONS = 10_000
TRAINED = 400
"""Every so many sessions one trains a model, saves it for an hour, and leaves it open."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def count(service: Any, table: Any, *where: Any) -> int:
    with service.records.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table).where(*where)) or 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_day_of_sessions_that_are_left_open(
    start: Any, ask: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At its evening the server holds what it held at noon: models are closed, folders gone."""
    clock = [1.8e9]
    for module in (service_module, client_sessions, pruning, log, sampling, checkpoints):
        monkeypatch.setattr(module, "now", lambda: clock[0])
    service = start(limits={"results": 3600.0, "undelivered": 2 * 3600.0, "live": 1})
    event.listen(service.records.engine, "connect", lambda one, _: one.execute("PRAGMA synchronous=OFF"))
    service.records.engine.dispose()  # a faked day needs no durability: 30,000 transactions need not reach the disk
    noon = None
    for n in range(SESSIONS):
        clock[0] += DAY / SESSIONS
        session = service.open_session(ME, {"number": n})
        service.note_contact(ME, session, heartbeat=True)
        if n % 10 == 0:
            service.open_sampler(ME, session, f"{session}-s", base="tiny")
        if n % TRAINED == 0:
            _train(service, ask, session)
            sampled = service.sample(
                ME, f"{session}-s", [5, 6], Sampling(max_tokens=2, seed=1), seeded=True, face="test"
            )
            ask.result(service, ME, sampled)
        if n % 50 == 0:
            service.pruner.prune()
        if n == SESSIONS // 2:
            noon = resident(), on_disk(service.settings.folder)
    gc.collect()
    assert noon is not None
    open_models = count(service, models, models.c.closed.is_(False))
    hour = service.settings.limits.silent / (DAY / SESSIONS)
    assert open_models <= hour / TRAINED + 2
    assert count(service, sessions, sessions.c.closed.is_(False)) <= min(hour + 60, service.settings.limits.sessions)
    folders = [one for one in (service.settings.folder / "snapshots").glob("*") if one.is_dir()]
    assert len(folders) <= open_models + 1, f"{len(folders)} folders of {open_models} models"
    saved = list((service.settings.folder / "checkpoints").rglob("*.safetensors"))
    assert len(saved) <= 4 * (hour / TRAINED + 2), f"{len(saved)} files of checkpoints that were to be kept for an hour"
    assert resident() <= noon[0] * 1.1 + 30 * 2**20, (
        f"{noon[0] / 2**20:.0f} MiB, {resident() / 2**20:.0f} in the evening"
    )
    disk = on_disk(service.settings.folder)
    assert disk <= noon[1] * 1.05 + 2**20, f"{noon[1] / 2**20:.1f} MiB at noon, {disk / 2**20:.1f} in the evening"
    clock[0] += service.settings.limits.silent + 1
    service.pruner.prune()
    assert count(service, sessions, sessions.c.closed.is_(False)) == 0
    assert count(service, models, models.c.closed.is_(False)) == 0
    assert count(service, sessions) <= service.settings.limits.history + SESSIONS / TRAINED


def _train(service: Any, ask: SimpleNamespace, session: str) -> None:
    """A model that is trained for a step, snapshotted, saved for an hour, and left."""
    made = service.create_model(ME, session, "tiny", {}, face="test")
    ask.result(service, ME, made)
    data = {"data": ask.sent(ask.data(0)), "loss": "cross_entropy"}
    for operation, arguments in (("forward_backward", data), ("step", {}), ("save", {"name": "left", "ttl": 3600.0})):
        ask.result(service, ME, service.submit(ME, made.queue, operation, arguments, face="test"))
