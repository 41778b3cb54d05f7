"""A disk without room: the record has whole lines or none, requests are told to come back, and nothing done is lost."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import EngineError
from finetooth_server import audit
from finetooth_server.audit import Audit, audit_key, verify
from finetooth_server.calls import category_of
from finetooth_server.faults import DiskFull
from finetooth_server.guard import problem
from finetooth_server.keeping.records import Records, metadata
from finetooth_server.keys import Caller
from finetooth_server.limits import room
from finetooth_server.settings import Settings
from sqlalchemy import text

ME = Caller("local", "", frozenset({"train", "sample", "read"}))


class Disk:
    """Takes so many bytes more, then cuts a write short, then fails: as a file system does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        monkeypatch.setattr(audit, "os", SimpleNamespace(**{**vars(os), "write": self._write}))

    def _write(self, file: int, data: bytes) -> int:
        if self.room is None:
            return os.write(file, data)
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = os.write(file, data[: self.room])
        self.room -= count
        return count


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("left", [0, 1, 150, 400])
def test_a_full_disk_leaves_whole_lines_and_none_is_lost(tmp_path: Path, disk: Disk, left: int) -> None:
    record, path = Audit(tmp_path / "audit.jsonl", audit_key(tmp_path)), tmp_path / "audit.jsonl"
    record.add("POST /0", tenant="team", outcome="200")
    disk.room = left
    for n in (1, 2, 3):
        record.add(f"POST /{n}", tenant="team", outcome="200")
    assert record.behind and path.read_bytes().endswith(b"\n")
    assert verify(path, key=audit_key(tmp_path)).lines == 4 - record.behind
    disk.room = None
    record.add("POST /4", tenant="team", outcome="200")
    assert not record.behind and verify(path, key=audit_key(tmp_path)).lines == 5
    assert [f"POST /{n}" in line for n, line in enumerate(path.read_text().splitlines())] == [True] * 5


def test_a_database_without_room_says_so_and_keeps_nothing_of_a_transaction(tmp_path: Path) -> None:
    records = Records(f"sqlite:///{tmp_path / 'records.db'}")
    sessions = metadata.tables["sessions"]
    row = {"id": "a", "tenant": "t", "created": 0.0, "seen": 0.0, "closed": False, "about": "x" * 10**6}
    with pytest.raises(DiskFull), records.write() as connection:
        connection.execute(text(f"PRAGMA max_page_count={connection.scalar(text('PRAGMA page_count')) + 2}"))
        connection.execute(sessions.insert().values({**row, "about": "{}"}))
        connection.execute(sessions.insert().values({**row, "id": "b"}))
    with records.read() as connection:
        assert not connection.execute(sessions.select()).all()


def test_what_no_room_causes_is_nobodys_mistake() -> None:
    full = EngineError("cannot be written")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    rust = EngineError("cannot be written: No space left on device (os error 28)")
    assert category_of(full) == category_of(rust) == "full"
    assert category_of(EngineError("anything else")) == "user"
    assert problem(full).status_code == 507  # Insufficient Storage (RFC 4918, 11.5)


def test_requests_wait_for_room_and_what_was_under_way_is_kept(
    serve: Callable[..., Any],
    recipe: dict[str, Any],
    tmp_path: Path,
    ask: SimpleNamespace,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import httpx2 as httpx

    served = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True, replay=1e9))
    service, usage = served.service, shutil.disk_usage("/")
    call = service.create_model(ME, service.open_session(ME), "tiny", {}, face="test")
    ask.result(service, ME, call)
    finish, refused, tried = service.log._records.write, threading.Event(), threading.Event()

    def without_room() -> Any:
        if refused.is_set() and threading.current_thread() is not threading.main_thread():
            tried.set()
            raise DiskFull
        return finish()

    monkeypatch.setattr(service.log._records, "write", without_room)
    monkeypatch.setattr(room, "PAUSE", 0.02)
    refused.set()
    disk.room = 10
    trained = service.submit(
        ME, call.queue, "forward_backward", {"data": ask.sent(ask.data(0)), "loss": "cross_entropy"}, face="test"
    )
    assert tried.wait(60)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with httpx.Client(base_url=served.url) as client:
        answer = client.get(f"/v1/calls/{trained.id}")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1" and "disk is full" in answer.text
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "failing"
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
        assert client.get("/health").status_code == 503  # lines of the record still wait
        assert client.get(f"/v1/calls/{trained.id}").status_code == 503
        disk.room = None
        refused.clear()
        assert ask.result(service, ME, trained)["loss"] > 0
        assert client.get("/health").status_code == 200
        assert client.get(f"/v1/calls/{trained.id}").json()["state"] == "done"
    path = service.settings.folder / "audit.jsonl"
    assert verify(path, key=audit_key(service.settings.folder)).lines
    assert "503" in path.read_text()
