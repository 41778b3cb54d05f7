"""What a server writes for its operator: where it is, once it listens, and nothing of what calls hold."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from finetooth_hooks import Sampling
from finetooth_server.keys import Caller
from finetooth_server.limits.connections import BoundedConnection, telling_server
from finetooth_server.settings import Settings
from finetooth_wire.listening import listen
from sqlalchemy import text

ME = Caller("local", "", frozenset({"train", "sample", "read"}))
PROMPT = [31, 41, 59, 26, 53]


def refuse(service: Any, when: str) -> None:
    """Let the database refuse to write calls down, as a full disk does."""
    trigger = f"CREATE TRIGGER refused BEFORE {when} BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
    with service.records.write() as connection:
        connection.execute(text(trigger))


def holds(log: str, numbers: Any) -> bool:
    """A plain log that holds some numbers of a list after each other, as JSON or Python writes them."""
    written = [repr(one) for one in numbers][:2]
    return any(between.join(written) in log for between in (",", ", "))


def test_results_that_cannot_be_written_down_are_not_logged(
    start: Any, ask: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither tokens nor log-probabilities, nor what was asked."""
    ended: list[str] = []
    monkeypatch.setattr(
        threading, "excepthook", lambda error: ended.append("".join(traceback.format_exception(error.exc_value)))
    )
    service = start()
    service.open_sampler(ME, service.open_session(ME), "sampler-1", base="tiny")
    sampling = Sampling(max_tokens=6, temperature=0, stop_ids=())

    def sample() -> Any:
        return service.sample(ME, "sampler-1", PROMPT, sampling, seeded=True, face="test")

    (completion,) = ask.result(service, ME, sample())["completions"]
    refuse(service, "UPDATE OF result ON calls WHEN NEW.result IS NOT NULL")
    sample()
    for _ in range(500):
        if ended:
            break
        time.sleep(0.02)
    log = caplog.text + "".join(ended) + service.writer.broken
    assert "the disk is full" in log, "nothing is said of it"
    for numbers in (completion["logprobs"], completion["tokens"], PROMPT):
        assert not holds(log, numbers), log


def test_requests_that_cannot_be_written_down_are_not_logged(
    serve: Any, recipe: dict[str, Any], tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    sampler = httpx.post(f"{served.url}/v1/samplers", json={"base": "tiny"}).json()["id"]
    refuse(served.service, "INSERT ON calls")
    answer = httpx.post(f"{served.url}/v1/samplers/{sampler}/generate", json={"prompt": PROMPT})
    assert answer.status_code == 500 and "disk" not in answer.text
    assert "the disk is full" in caplog.text, "nothing is said of it"
    assert not holds(caplog.text, PROMPT), caplog.text


@pytest.mark.parametrize("table", ["sessions", "checkpoints"])
def test_names_and_notes_that_cannot_be_written_down_are_not_logged(
    serve: Any, recipe: dict[str, Any], tmp_path: Any, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    served = serve(Settings(tmp_path / "server", {"tiny": recipe}, keyless=True))
    about = {"base": "tiny", "metadata": {"note": "private-note"}}
    if table == "sessions":
        refuse(served.service, "INSERT ON sessions")
        answer = httpx.post(f"{served.url}/v1/sessions?wait=60", json=about)
        assert answer.status_code == 500
    else:
        made = httpx.post(f"{served.url}/v1/sessions?wait=60", json=about, timeout=90).json()
        refuse(served.service, "INSERT ON checkpoints")
        place = f"{served.url}/v1/sessions/{made['session']}/save?wait=60"
        answer = httpx.post(place, json={"name": "private-name"}, timeout=90)
        assert answer.json()["error"]["category"] == "server"
    assert "disk" not in answer.text
    assert "the disk is full" in caplog.text, "nothing is said of it"
    assert "private" not in caplog.text, caplog.text


def running(fails: bool = False) -> tuple[uvicorn.Server, socket.socket, list[bool]]:
    """A server that notes, when it says that it serves, whether it takes connections; its end is waited for."""
    listening, said = listen("127.0.0.1", 0), list[bool]()
    address = listening.getsockname()

    @asynccontextmanager
    async def life(app: Any) -> AsyncIterator[None]:
        if fails:
            raise RuntimeError("the service does not start")
        yield

    def say() -> None:
        try:
            socket.create_connection(address, timeout=5).close()
            said.append(True)
        except OSError:
            said.append(False)
        server.should_exit = True

    from fastapi import FastAPI

    config = uvicorn.Config(FastAPI(lifespan=life), http=BoundedConnection, log_level="critical")
    server = telling_server(config, say)

    def run() -> None:
        with suppress(SystemExit):  # how it ends where it could not start
            server.run(sockets=[listening])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return server, listening, said


def test_serving_is_said_once_it_listens() -> None:
    _, listening, said = running()
    listening.close()
    assert said == [True]


def test_who_does_not_start_says_nothing() -> None:
    _, listening, said = running(fails=True)
    listening.close()
    assert said == []
