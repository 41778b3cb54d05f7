"""What stands before every face: bounds on requests, one place where errors become answers, and the audit record."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from finetooth_hooks import FinetoothError, UserError
from starlette.responses import JSONResponse, Response

from finetooth_server.faults import Busy, Forbidden, Refused, TooMuch
from finetooth_server.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOGGER = logging.getLogger("finetooth.server")

QUIET = ("/health", "/metrics", "/api/v1/healthz")
"""Requests that leave no line in the audit record."""

SLOWEST = 20.0
"""Seconds between two parts of a request's body, and for taking a part of an answer, at most."""


class Guard:
    """ASGI middleware.

    Args:
        app: what answers.
        service: whose limits hold, and whose record is written.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        received = sent = status = 0
        begun = stalled = False

        async def counted(message: Message) -> None:
            nonlocal sent, status, begun, stalled
            begun = True
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            try:
                await asyncio.wait_for(send(message), SLOWEST)
            except TimeoutError as error:  # the answer stays as it is: cut off
                stalled = True
                raise Stalled("the client does not read its answer") from error

        try:
            self._check_origin(scope)
            body = await self._body(scope, receive)
            received = len(body)
            await self._app(scope, _replayed(body, receive), counted)
        except TimeoutError:
            await _answer(begun, JSONResponse({"error": "the request came too slowly"}, 408), scope, receive, counted)
        except Exception as error:
            if not isinstance(error, FinetoothError) and not stalled:
                LOGGER.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            await _answer(begun, problem(error), scope, receive, counted)
        finally:
            if scope["path"] not in QUIET and status not in (202, 408):
                self._record(scope, state, received, sent, status)

    def _check_origin(self, scope: MutableMapping[str, Any]) -> None:
        """Without keys, being on this machine is all that a request needs; a page in a browser here must not send one
        for a stranger, nor reach this server under a name of its own.

        Raises:
            Forbidden: it comes from such a page.
        """
        if not self._service.settings.keyless:
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
        for name, prefix in ((b"host", "//"), (b"origin", "")):
            if name in headers and not _here(prefix + headers[name]):
                raise Forbidden("this server is for this machine alone", action="call it by its address, or make a key")

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """The whole body, before anything looks at it.

        Raises:
            TooLarge: it is longer than allowed.
            TimeoutError: it comes too slowly.
        """
        most = self._service.settings.limits.body
        body = bytearray()
        while True:
            message = await asyncio.wait_for(receive(), SLOWEST)
            if message["type"] != "http.request":  # the client has left
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > most:
                raise TooLarge(f"a request of more than {most} bytes", action="send less at once")
            if not message.get("more_body", False):
                return bytes(body)

    def _record(self, scope: MutableMapping[str, Any], state: Any, received: int, sent: int, status: int) -> None:
        route = getattr(scope.get("route"), "path", "") or "unknown"
        caller = state.get("caller")
        self._service.audit.add(
            f"{scope['method']} {route}",
            tenant=caller.tenant if caller else "",
            key=caller.key if caller else "",
            model=str(scope.get("path_params", {}).get("session", "") or state.get("model", ""))[:160],
            received=received,
            sent=sent,
            outcome=str(status),
        )


class Stalled(OSError):
    """A client that takes nothing of its answer any more."""


class TooLarge(Refused):
    """A body beyond the limit."""

    status = 413


def problem(error: Exception) -> Response:
    """An error as an answer: one line, no trace."""
    if isinstance(error, Refused):
        headers = {"Retry-After": "1"} if isinstance(error, TooMuch | Busy) else None
        return JSONResponse({"error": str(error)}, error.status, headers=headers)
    if isinstance(error, UserError):
        return JSONResponse({"error": str(error)}, 400)
    return JSONResponse({"error": "the server failed; its own log says why"}, 500)


def _here(url: str) -> bool:
    """The URL names this machine."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with a body that was read already."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(
    begun: bool, response: Response, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    if not begun:
        await response(scope, receive, send)
