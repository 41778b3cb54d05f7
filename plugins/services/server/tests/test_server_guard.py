"""What stands before the routes: who has no key brings no body, what was cut is no request, who is silent goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finetooth
import httpx2 as httpx
import pytest
from finetooth_hooks import Datum
from finetooth_server import guard
from finetooth_server.keeping.counted_log import Counted, CountedLines
from finetooth_server.limits import connections
from finetooth_server.settings import Limits, Settings


@pytest.fixture(scope="module")
def served(serve: Any, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    limits = Limits(body=2**20, coming=3 * 2**19)
    server = serve(Settings(tmp_path_factory.mktemp("guard"), {"tiny": recipe}, limits=limits))
    server.key = server.service.keys.create("vision")
    return server


@pytest.fixture
def wire(served: Any) -> Iterator[Any]:
    """Opens connections; all are closed in the end."""
    opened: list[socket.socket] = []

    def open_one() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", served.port), timeout=20))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def head(path: str, key: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def answer(connection: socket.socket) -> bytes:
    """The first bytes of an answer; empty once the server has closed the connection."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def test_no_body_is_read_without_a_key(wire: Any) -> None:
    connection = wire()
    connection.sendall(head("/v1/sessions", "ft_0123456789ab_" + "0" * 64, 2**20))  # and not a byte of it
    assert answer(connection).startswith(b"HTTP/1.1 401 ")


def test_who_announces_too_much_is_refused_before_the_first_byte(served: Any, wire: Any) -> None:
    connection = wire()
    connection.sendall(head("/v1/sessions", served.key, 2**20 + 1))  # and not a byte of it
    found = answer(connection)
    while part := answer(connection):
        found += part
    assert found.startswith(b"HTTP/1.1 413 ") and b"1048576 bytes" in found


def test_a_body_in_chunks_may_be_no_longer_than_one_whose_length_is_announced(served: Any, wire: Any) -> None:
    connection, chunk = wire(), b" " * 2**16
    connection.sendall(head("/v1/sessions", served.key, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
    for _ in range(17):  # 64 KiB more than may be; it never ends
        with contextlib.suppress(ConnectionError):
            connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
    refusal = answer(connection)
    while part := answer(connection):
        refusal += part
    assert refusal.startswith(b"HTTP/1.1 413 ") and b"1048576 bytes" in refusal


def test_what_was_cut_off_reaches_nothing_behind(served: Any) -> None:
    """Not even where what came is a whole request by itself."""
    behind = guard.Guard(reached := Reached(), served.service)
    messages = iter([{"type": "http.request", "body": b"{}", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None: ...

    headers = [(b"x-api-key", served.key.encode()), (b"content-length", b"9")]
    asked = {"type": "http", "method": "POST", "path": "/v1/sessions", "headers": headers, "client": ("127.0.0.1", 1)}
    asyncio.run(behind(asked, receive, send))
    assert not reached.bodies


class Reached:
    """An application that notes which bodies reach it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])


def test_what_was_cut_off_is_no_request(served: Any, wire: Any) -> None:
    with finetooth.Client(served.url, served.key) as client:
        session = client.session("tiny")
        session.forward_backward([Datum.from_tokens(range(5, 14))])
        before = served.service.model(served.service.keys.caller(served.key, keyless=False), session.id).next_seq
        body = b'{"settings": {"learning_rate": 0.0}}'
        for length in (len(body) + 1, len(body) + 1000):
            connection = wire()
            connection.sendall(head(f"/v1/sessions/{session.id}/step", served.key, length) + body)
            connection.shutdown(socket.SHUT_WR)
            answer(connection)
        after = served.service.model(served.service.keys.caller(served.key, keyless=False), session.id).next_seq
        assert after == before
        assert session.step().step == 1  # the gradient of before, and once


def test_a_body_has_to_come_in_time(served: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SLOWEST", 0.2)
    connection = wire()
    connection.sendall(head("/v1/sessions", served.key, 2**20))
    for _ in range(100):  # a byte now and then does not help
        try:
            connection.sendall(b" ")
        except OSError:
            break
        connection.settimeout(0.05)
        try:
            if found := connection.recv(65536):
                assert found.startswith(b"HTTP/1.1 408 ")
                return
            break
        except TimeoutError:
            continue
        except OSError:
            break
    else:
        pytest.fail("the server waited for it all the time")


@pytest.mark.parametrize("key", ["ft_000000000000_nobody", ""])
def test_a_refused_body_is_not_read_on_for_ever(served: Any, wire: Any, key: str) -> None:
    """Without a key, and beyond the limit: the connection is closed after the answer, whatever still comes."""
    lines = f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nX-API-Key: {key or served.key}\r\n"
    endless = wire()
    endless.sendall(f"{lines}Transfer-Encoding: chunked\r\n\r\n".encode())
    piece = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    with pytest.raises(OSError, match=r"reset|Broken pipe|[Ee]rrno"):
        for _ in range(served.service.settings.limits.body // 2**16 + 200):
            endless.sendall(piece)
            time.sleep(0.001)


def test_bodies_share_the_room_for_them(served: Any, wire: Any) -> None:
    held = wire()
    held.sendall(head("/v1/sessions", served.key, 2**20) + b" " * (2**20 - 1))
    for _ in range(200):
        if _coming(served) >= 2**20 - 1:
            break
        time.sleep(0.01)
    other = wire()
    other.sendall(head("/v1/sessions", served.key, 2**20) + b" " * (2**20 - 1))
    assert answer(other).startswith(b"HTTP/1.1 503 ")
    held.close()
    for _ in range(200):
        if not _coming(served):
            break
        time.sleep(0.01)
    assert httpx.get(f"{served.url}/v1/models", headers={"X-API-Key": served.key}).status_code == 200


def _coming(served: Any) -> int:
    app = served._server.config.loaded_app
    while not isinstance(app, guard.Guard):
        app = getattr(app, "app", None) or app.middleware_stack
    return int(app._coming)


def test_who_says_nothing_is_sent_away(served: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SLOWEST", 0.2)
    silent, half, spoken = wire(), wire(), wire()
    half.sendall(b"GET /health HTTP/1.1\r\nHost: ")
    spoken.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert answer(spoken).startswith(b"HTTP/1.1 200 ")
    assert answer(silent) == b"" and not answer(half).startswith(b"HTTP/1.1 2")


def test_silent_connections_keep_nobody_out(served: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have been silent for longest make room, however many there are."""
    monkeypatch.setattr(connections.BoundedConnection, "most", 8)
    several = [wire() for _ in range(100)]
    assert httpx.get(f"{served.url}/health", timeout=5).status_code == 200
    open_ = 0
    for one in several:
        one.settimeout(0.02)
        with contextlib.suppress(ConnectionResetError):
            try:
                one.recv(1)
            except TimeoutError:
                open_ += 1
    assert open_ <= 8


def test_one_connection_too_many_is_closed(served: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all are at work: each has sent a head, and its body is awaited."""
    monkeypatch.setattr(connections.BoundedConnection, "most", 4)
    working = [wire() for _ in range(4)]
    for one in working:
        one.sendall(head("/v1/sessions", served.key, 100) + b"{")
    for _ in range(200):
        if _coming(served) == 4:
            break
        time.sleep(0.01)
    more = wire()
    assert answer(more) == b""
    for one in working:
        one.close()
    for _ in range(100):
        try:
            assert httpx.get(f"{served.url}/health").status_code == 200
            return
        except httpx.TransportError:
            time.sleep(0.02)
    pytest.fail("the server takes nobody any more")


def test_pages_load_nothing_from_elsewhere(served: Any) -> None:
    assert httpx.get(f"{served.url}/docs").status_code == httpx.get(f"{served.url}/openapi.json").status_code == 401
    mine = {"X-API-Key": served.key}
    page = httpx.get(f"{served.url}/docs", headers=mine)
    assert page.status_code == 200 and "<script" not in page.text and "http://" not in page.text
    assert "https://" not in page.text and "/v1/sessions/{session}/forward_backward" in page.text
    document = httpx.get(f"{served.url}/openapi.json", headers=mine).json()
    assert {one["type"] for one in document["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert path == "/health" or operation["security"], path


def test_one_cause_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    counted = Counted(logging.getLogger("finetooth.server"), lambda: clock[0])

    def fail(kind: type[Exception]) -> None:
        try:
            raise kind("here")
        except kind as error:
            counted.error("POST /v1/x failed", error)

    with caplog.at_level(logging.ERROR, "finetooth.server"):
        for _ in range(1000):
            fail(ValueError)
        fail(KeyError)
        clock[0] = 61.0
        fail(ValueError)
    assert [record.getMessage() for record in caplog.records] == [
        "POST /v1/x failed", "POST /v1/x failed", "POST /v1/x failed (999 more like it since)",
    ]  # fmt: skip


def test_what_a_library_writes_is_counted_too(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    logger = logging.getLogger("finetooth.test.library")
    logger.addFilter(CountedLines(lambda: clock[0]))
    with caplog.at_level(logging.WARNING, logger.name):
        for _ in range(5000):
            logger.warning("Invalid HTTP request received.")
        logger.warning("at %s", "once")
        clock[0] = 61.0
        logger.warning("Invalid HTTP request received.")
    assert [record.getMessage() for record in caplog.records] == [
        "Invalid HTTP request received.", "at once", "Invalid HTTP request received. (4999 more like it since)",
    ]  # fmt: skip


def test_the_files_that_a_process_may_open_bound_the_connections(tmp_path: Path) -> None:
    assert 16 <= connections.most_connections() <= connections.MOST


@pytest.mark.parametrize("begun", [False, True])
def test_the_answer_to_a_key_ends_when_it_is_revoked(served: Any, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    """A stream is cut off; what has not begun is answered 401."""
    monkeypatch.setattr(guard, "RECHECKED", -1.0)
    keys = served.service.keys
    key, sent = keys.create("vision"), []

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        keys.revoke(key.split("_")[1])
        if not begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"b"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    headers = [(b"x-api-key", key.encode())]
    scope = {"type": "http", "method": "GET", "path": "/v1/x", "query_string": b"", "headers": headers, "client": None}
    asyncio.run(guard.Guard(streams, served.service)(scope, receive, send))
    told = [message.get("body", message.get("status")) for message in sent]
    assert told == [200, b"a"] if begun else (told[0] == 401 and b"no longer valid" in told[1])
