"""What an attack has: the server's address, an attacker's keys, what is another tenant's, and tools to send anything.

Everything that the attacker receives is searched for `CANARY`, which stands in what the other tenant alone may see.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from attacking.server import Attacked

CANARY = "canary7f3a91"
"""In the other tenant's ids, names, metadata and rows, wherever a client chooses them."""

FLOOD = 15.0
"""Seconds for which a flood goes on that the server slows down."""

LORA = {"name": "lora", "rank": 4}
ROW = {"tokens": [5, 6, 7], "targets": [6, 7, 8]}


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        what: in a line, for the page.
        run: does it; returns what became of it. An AssertionError is a defence that did not hold.
        short: part of the short form.
    """

    name: str
    what: str
    run: Callable[[Ground], str]
    short: bool


ATTACKS: list[Attack] = []
"""All of them, in the order of their modules."""


def attack(what: str, *, short: bool = False) -> Callable[[Callable[[Ground], str]], Callable[[Ground], str]]:
    """A function that attacks, by its name."""

    def add(run: Callable[[Ground], str]) -> Callable[[Ground], str]:
        ATTACKS.append(Attack(run.__name__.replace("_", " "), what, run, short))
        return run

    return add


@dataclass(frozen=True)
class Theirs:
    """What is another tenant's, as far as an attacker may have heard of it."""

    model: str
    sampler: str
    call: str
    checkpoint: str


@dataclass
class Ground:
    """An attacker.

    Attributes:
        leaks: answers that held what is another tenant's.
        failures: answers of the kind 5xx, or with a trace.
    """

    server: Attacked
    theirs: Theirs
    leaks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        bounds = httpx.Limits(max_connections=256, max_keepalive_connections=8)
        self.http = httpx.Client(base_url=self.server.url, timeout=60, limits=bounds)

    # --- requests -----------------------------------------------------------------------------------------------------

    def send(
        self, method: str, path: str, body: Any = None, *, key: str | None = "mallory", **more: Any
    ) -> httpx.Response:
        """One request: `body` as JSON, or as it is if it is bytes."""
        headers = dict(more.pop("headers", {}))
        if key is not None:
            headers["X-API-Key"] = self.server.keys.get(key, key)
        if isinstance(body, bytes):
            more["content"] = body
            headers.setdefault("Content-Type", "application/json")
        elif body is not None:
            more["json"] = body
        answer = self.http.request(method, path, headers=headers, **more)
        self.look(f"{method} {path}", answer.content, answer.status_code)
        return answer

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.send("POST", path, body, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.send("GET", path, **more)

    def wire(self, route: str, body: Any, **more: Any) -> httpx.Response:
        """A request of the Tinker wire."""
        return self.post(f"/api/v1/{route}", body, **more)

    def raw(self, data: bytes, *, seconds: float = 5.0, most: int = 2**20) -> bytes:
        """Bytes on a connection of their own; what comes back until it is closed or the time is over."""
        found = bytearray()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=seconds) as connection:
            end = time.monotonic() + seconds
            try:
                connection.sendall(data)
                while len(found) < most and (left := end - time.monotonic()) > 0:
                    connection.settimeout(left)
                    part = connection.recv(65536)
                    if not part:
                        break
                    found += part
            except OSError:
                pass
        status = int(found[9:12]) if found[:5] == b"HTTP/" and found[9:12].isdigit() else 0
        self.look("raw bytes", bytes(found), status)
        return bytes(found)

    def head(self, method: str, path: str, *lines: str, key: str | None = "mallory") -> bytes:
        """The head of a request."""
        if key is not None:
            lines = (*lines, f"X-API-Key: {self.server.keys.get(key, key)}")
        return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()

    def look(self, where: str, content: bytes, status: int) -> None:
        """Note what an answer ought not to hold."""
        with self._lock:
            if CANARY.encode() in content:
                self.leaks.append(f"{where}: {content[:200]!r}")
            if status >= 500 or b"Traceback (most recent" in content:
                self.failures.append(f"{where}: {status} {content[:300]!r}")

    @contextmanager
    def connections(self, count: int) -> Iterator[list[socket.socket]]:
        """So many open connections, or as many as there may be."""
        opened = []
        try:
            for _ in range(count):
                try:
                    opened.append(socket.create_connection(("127.0.0.1", self.server.port), timeout=2))
                except OSError:
                    break
            yield opened
        finally:
            for one in opened:
                one.close()

    def side_by_side(self, count: int, do: Callable[[int], Any], *, workers: int = 16) -> list[Any]:
        """The same thing many times at once."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(do, range(count)))

    def flood(self, count: int, do: Callable[[int], Any], *, workers: int, seconds: float = FLOOD) -> list[Any]:
        """The same thing again and again from so many workers, each of which waits for its answers: until it was done
        so often, or for so long where the server makes who comes too often wait."""
        end, numbers, found = time.monotonic() + seconds, iter(range(count)), list[Any]()

        def work(_: int) -> None:
            while time.monotonic() < end and (n := next(numbers, None)) is not None:
                found.append(do(n))

        self.side_by_side(workers, work, workers=workers)
        return found

    # --- what the attacker has ----------------------------------------------------------------------------------------

    def model(self, **sections: Any) -> str:
        """A new model of the attacker's."""
        answer = self.post("/v1/sessions?wait=30", {"base": self.base, "adapter": LORA, **sections})
        found = self.ended(answer)
        assert found["state"] == "done", found
        id_: str = found["session"]
        return id_

    def close(self, model: str) -> None:
        """End a model."""
        self.send("DELETE", f"/v1/sessions/{model}")

    @contextmanager
    def a_model(self, **sections: Any) -> Iterator[str]:
        """A model that is closed afterwards."""
        id_ = self.model(**sections)
        try:
            yield id_
        finally:
            self.close(id_)

    def sampler(self) -> str:
        """A new sampler of the base model."""
        id_: str = self.post("/v1/samplers", {"base": self.base}).json()["id"]
        return id_

    @property
    def base(self) -> str:
        return str(self.server.place / "tiny")

    @property
    def number(self) -> int:
        """A new number."""
        return next(self._numbers)

    def wire_session(self) -> str:
        """A new session of the Tinker wire."""
        id_: str = self.wire("create_session", {}).json()["session_id"]
        return id_

    def wire_model(self) -> str:
        """A new model of the Tinker wire."""
        body = {
            "session_id": self.wire_session(),
            "model_seq_id": 0,
            "base_model": self.base,
            "lora_config": {"rank": 32},
        }
        promise = self.wire("create_model", body).json()
        found = self.future(promise["request_id"])
        assert found.status_code == 200 and "error" not in found.text, found.text
        id_: str = promise["model_id"]
        return id_

    # --- what became of it --------------------------------------------------------------------------------------------

    def ended(self, answer: httpx.Response, seconds: float = 60.0) -> dict[str, Any]:
        """The call of an answer, once it is done or failed; an answer that is no call as it is."""
        found: dict[str, Any] = answer.json()
        end = time.monotonic() + seconds
        while found.get("state") == "queued" and time.monotonic() < end:
            found = self.get(f"/v1/calls/{found['id']}?wait=5").json()
        return found

    def future(self, id_: str, seconds: float = 60.0) -> httpx.Response:
        """The result of a promise."""
        end = time.monotonic() + seconds
        while True:
            answer = self.wire("retrieve_future", {"request_id": id_})
            if answer.status_code != 408 or time.monotonic() > end:
                return answer

    def refused(self, answer: httpx.Response, word: str = "") -> str:
        """The request was refused, or its call failed by the client's fault; what it was told."""
        said: str
        if answer.status_code in (200, 202):
            found = answer.json()
            if "request_id" in found:
                found = self.future(found["request_id"]).json()
                said = str(found.get("error", ""))
                assert said and found.get("category") == "user", found
            else:
                found = self.ended(answer)
                assert found.get("state") == "failed", f"it was taken: {json.dumps(found)[:300]}"
                assert found["error"]["category"] == "user", found
                said = found["error"]["message"]
        else:
            assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
            said = answer.json().get("error", answer.text)
        assert word in said, f"{word!r} is not in {said[:300]!r}"
        return said[:160]
