"""The policy as NeMo Gym's model: a server of `/v1/responses` whose answers are the turns that the run samples."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from finetooth_hooks import RecipeError
from finetooth_toolbox.text.strict_json import received

EPISODE = "finetooth_episode"
"""In the metadata of a request: the key of the episode that it belongs to."""
LARGEST = 2**26
"""Bytes of a request at most."""
GONE = (410, {"error": {"message": "the episode has ended"}})
"""The answer to a request of an episode that has ended; NeMo Gym tries again after 429 and 5xx, and not after this."""


class Question:
    """A request for a turn, which waits for its answer."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body
        self.answered: Future[tuple[int, Mapping[str, Any]]] = Future()

    def give(self, status: int, content: Mapping[str, Any]) -> None:
        """Answer it, unless it has an answer."""
        if not self.answered.done():
            self.answered.set_result((status, content))


Events = queue.SimpleQueue[Any]


class PolicyServer:
    """Hands requests to the episodes that they belong to.

    Args:
        address: `HOST:PORT` to listen at.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._episodes: dict[str, Events] = {}
        self._lock = threading.Lock()
        self._http: ThreadingHTTPServer | None = None

    def begin(self) -> None:
        """Listen, if it does not.

        Raises:
            RecipeError: the address is taken, or none.
        """
        if self._http is not None:
            return
        try:
            parts = urlsplit(f"http://{self._address}")
            self._http = _Http((parts.hostname or "", parts.port or 0), _handler(self))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise RecipeError(
                "method.environment.policy", f"nothing can listen at {self._address}: {why}",
                action="give another HOST:PORT, and NeMo Gym the same as policy_base_url",
            ) from error  # fmt: skip
        threading.Thread(target=self._http.serve_forever, name="policy", daemon=True).start()

    def key(self) -> str:
        """The key of a new episode."""
        return secrets.token_hex(16)

    def open(self, key: str) -> Events:
        """Where the questions of an episode arrive."""
        with self._lock:
            return self._episodes.setdefault(key, queue.SimpleQueue())

    def close(self, key: str) -> None:
        """An episode has ended: its questions are refused, those that wait too."""
        with self._lock:
            events = self._episodes.pop(key, None)
        with suppress(queue.Empty):
            while events is not None:
                if isinstance(event := events.get_nowait(), Question):
                    event.give(*GONE)

    def ask(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        """Status and content of the answer to a request, once the policy has written its turn."""
        metadata = body.get("metadata")
        key = metadata.get(EPISODE) if isinstance(metadata, Mapping) else None
        with self._lock:
            events = self._episodes.get(str(key))
            question = Question(body)
            if events is not None:
                events.put(question)
        if events is not None:
            return question.answered.result()
        return GONE if key else (400, {"error": {"message": f"metadata.{EPISODE} names no episode"}})


@cache
def policy_at(address: str) -> PolicyServer:
    """The server at an address: the same one for all runs of this process, since keys tell their episodes apart."""
    return PolicyServer(address)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    """Episodes of a batch ask at the same time."""


def _handler(policy: PolicyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            status, content = self._answer()
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _answer(self) -> tuple[int, Mapping[str, Any]]:
            if urlsplit(self.path).path != "/v1/responses":
                return 404, {"error": {"message": "the policy answers POST /v1/responses"}}
            try:
                size = int(self.headers.get("Content-Length") or "")
                if not 0 <= size <= LARGEST:
                    return 413, {"error": {"message": f"more than {LARGEST:,} bytes"}}
                body = received(self.rfile.read(size))
            except ValueError as error:
                return 400, {"error": {"message": f"the request is not JSON with a length: {error}"}}
            if not isinstance(body, dict) or not isinstance(body.get("input"), str | list):
                return 400, {"error": {"message": "the request has no input"}}
            return policy.ask(body)

    return Handler
