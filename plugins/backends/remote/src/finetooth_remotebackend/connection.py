"""Requests to a finetooth server: repeated until it answers, executed once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
from finetooth_hooks import EngineError, UserError

WAIT = 30.0
"""Seconds for which one request waits for a result."""

RETRIED = (429, 502, 503, 504)
"""HTTP statuses after which a request is repeated."""


class Connection:
    """A server.

    Args:
        key: an API key; None if the server needs none.
        patience: seconds for which a request is repeated if the server cannot be reached.
        certificate: file of the server's certificate; empty: those that the system trusts.
    """

    def __init__(self, url: str, key: str | None, patience: float, certificate: str = "") -> None:
        self.url, self._patience = url, patience
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=WAIT + 30, verify=certificate or True)
        self._next = 1

    def request(self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
        """The response, as JSON.

        Raises:
            UserError: the server refuses the request.
            EngineError: no answer for longer than the patience.
        """
        answer = self._answered(method, path, body, query)
        return answer.json() if answer.content else None

    def forget(self, path: str) -> None:
        """Delete something, if the server can be reached at once; otherwise the server cleans up later."""
        with suppress(httpx.HTTPError):
            self._http.delete(path, timeout=5.0)

    def offers(self, path: str) -> bool:
        """Whether the server has this route, for any caller.

        Raises:
            EngineError: no answer.
        """
        return bool(self._request("GET", path).status_code != 404)

    def call(self, session: str, operation: str, body: Mapping[str, Any]) -> Any:
        """The result of the next call on a model. Calls are numbered, so the server executes a repeated one once.

        Raises:
            EngineError: it failed.
        """
        query = {"seq": self._next, "wait": WAIT}
        call = self.request("POST", f"/v1/sessions/{session}/{operation}", body, query)
        self._next += 1
        return self.result(call)

    def result(self, call: Any) -> Any:
        """The result of a call that the server accepted."""
        while call["state"] == "queued":
            call = self.request("GET", f"/v1/calls/{call['id']}", query={"wait": WAIT})
        if call["state"] == "failed":
            raise EngineError(f"{self.url}: {call['error']['message']}")
        return call["result"]

    def download(self, path: str, target: Path) -> None:
        """Write the server's response into a file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self._answered("GET", path).content)

    def _answered(self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
        answer = self._request(method, path, body, query)
        if answer.status_code >= 400:
            raise UserError(f"{self.url}: {_error_text(answer)}", action=_action(answer.status_code))
        return answer

    def _request(self, method: str, path: str, body: Any = None, query: Mapping[str, Any] | None = None) -> Any:
        end, pause = time.monotonic() + self._patience, 0.1
        why = ""
        while True:
            try:
                answer = self._http.request(method, path, json=body, params=query)
                if answer.status_code not in RETRIED:
                    return answer
                why = f"it answered {answer.status_code}"
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            if time.monotonic() + pause > end:
                raise EngineError(
                    f"{self.url} gave no answer for {self._patience:.0f} s: {why}", action="see whether it runs"
                )
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _error_text(answer: Any) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {answer.status_code} to {answer.request.method} {answer.request.url.path}"


def _action(status: int) -> str:
    return "export FT_API_KEY with a key of this server" if status == 401 else ""
