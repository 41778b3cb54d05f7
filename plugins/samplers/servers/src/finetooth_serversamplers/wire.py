"""Streamed answers of many simultaneous requests, on a separate thread."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any

import httpx2 as httpx
from finetooth_hooks import EngineError

from finetooth_serversamplers.asking import GATEWAY_TIMEOUT, REQUEST_WRONG, Asking, ServerGone

AGAIN = "see that it runs, then ask again"


class Wire:
    """A thread with an event loop, which ends with this object.

    Args:
        asking: the server.
        silence: seconds within which the next token must come.
        together: number of simultaneous requests; others wait.
    """

    def __init__(self, asking: Asking, silence: float, together: int) -> None:
        self.asking = asking
        self._silence, self._together = silence, together
        self._loop = asyncio.new_event_loop()
        self._client: httpx.AsyncClient | None = None
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def begin(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Run a coroutine on the background loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def chunks(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        """The chunks of a request, in order.

        Raises:
            UpstreamError: the server is unreachable, stops sending, ends during an answer, or fails.
            EngineError: the server refuses the request.
        """
        try:
            async with self._http().stream("POST", path, json={**body, "stream": True}) as answer:
                if answer.status_code >= 400:
                    text = (await answer.aread()).decode(errors="replace")
                    raise self._refused(
                        answer.status_code, f"answers {path} with {answer.status_code}: {_refusal_line(text)}"
                    )
                async for line in answer.aiter_lines():
                    payload = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if payload == "[DONE]":
                        return
                    if payload:
                        yield self._read(payload)
        except httpx.ReadTimeout as error:
            problem = f"{self.asking.called}: {self.asking.url} gave no token for {self._silence:g} s"
            raise ServerGone(problem, action=AGAIN, late=True) from error
        except (httpx.HTTPError, OSError) as error:
            what = " ".join(str(error).split()) or type(error).__name__
            problem = f"{self.asking.called}: {self.asking.url} cannot be reached: {what}"
            raise ServerGone(problem, action=AGAIN) from error
        raise ServerGone(f"{self.asking.called}: {self.asking.url} ended in the middle of an answer", action=AGAIN)

    def _read(self, payload: str) -> Any:
        try:
            message = json.loads(payload)
        except ValueError as error:
            raise self.asking.wrong("sent a chunk that is not JSON", AGAIN) from error
        if isinstance(message, dict) and "error" in message:
            refusal = message["error"]
            status = refusal.get("code") if isinstance(refusal, dict) else None
            raise self._refused(status, f"says: {_refusal_line(json.dumps(refusal))}")
        return message

    def _refused(self, status: Any, problem: str) -> EngineError:
        """The error for an answer with this status."""
        called = f"{self.asking.called}: {self.asking.url} {problem}"
        if status in REQUEST_WRONG:
            return EngineError(called, action="fix the request")
        return ServerGone(called, action=AGAIN, late=status == GATEWAY_TIMEOUT)

    def _http(self) -> httpx.AsyncClient:
        """The HTTP client, made in the event loop that uses it."""
        if self._client is None:
            limits = httpx.Limits(max_connections=self._together)
            timeout = httpx.Timeout(10.0, read=self._silence, pool=None)
            self._client = self.asking.client(timeout=timeout, limits=limits)
        return self._client


def _refusal_line(text: str) -> str:
    """A refusal in one line; for vLLM, its message."""
    try:
        content = json.loads(text)
        inner = content.get("error", content)
        text = str(inner.get("message", text)) if isinstance(inner, dict) else str(inner)
    except (ValueError, AttributeError):
        pass
    return " ".join(text[:300].split())
