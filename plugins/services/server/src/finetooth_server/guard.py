"""The middleware before every face: limits of requests, conversion of errors to answers, and the audit record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from finetooth_hooks import FinetoothError, UserError
from finetooth_toolbox.loopback import is_loopback_url
from finetooth_wire.bounds import brief
from finetooth_wire.listening import SLOWEST
from starlette.responses import JSONResponse, Response

from finetooth_server.calls import STATUS, category_of
from finetooth_server.faults import Busy, DiskFull, Forbidden, Refused, TooMuch, Unauthorised
from finetooth_server.keeping.counted_log import Counted
from finetooth_server.keys import Caller
from finetooth_server.limits.admission import Admission
from finetooth_server.limits.fair_threads import CLIENT
from finetooth_server.limits.rates import network_of
from finetooth_server.limits.room import check_room
from finetooth_server.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Shape = Callable[[int, str], Any]
"""From an HTTP status and a message to the body of an answer."""
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOGGER = logging.getLogger("finetooth.server")

QUIET = ("/health", "/metrics", "/api/v1/healthz")
"""Requests without a line in the audit record."""

RECHECKED = 1.0
"""Seconds between two checks of the key of a running request."""

LEAST_RATE = 64 * 2**10
"""Smallest allowed rate of a body, in bytes per second."""

FORWARDED = {b"forwarded", b"x-forwarded-for", b"x-forwarded-host"}
"""Headers with which a proxy marks requests of other machines."""

OPEN = ("/health", "/api/v1/healthz")
"""Requests that need no key."""


class Guard:
    """ASGI middleware.

    Args:
        app: the inner application.
        service: with the limits and the audit record.
        shapes: a face's format of errors, by the prefix of its paths.
        most: connections at once.
    """

    def __init__(self, app: App, service: Service, shapes: Mapping[str, Shape] | None = None, most: int = 2048) -> None:
        self._app, self._service, self._shapes = app, service, shapes or {}
        self._admission = Admission(service.settings.limits, most)
        self._coming = 0  # bytes of incomplete bodies
        self._failures = Counted(LOGGER)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        received = sent = status = 0
        begun = stalled = ended = False
        whole, counts = not _has_body(scope), ""

        checked = asyncio.get_running_loop().time()

        async def counted(message: Message) -> None:
            nonlocal sent, status, begun, stalled, checked
            if asyncio.get_running_loop().time() - checked > RECHECKED and not ended:
                await self._check_still(state)
                checked = asyncio.get_running_loop().time()
            begun = True
            if message["type"] == "http.response.start":
                status = message["status"]
                if not whole:  # the rest of the body is not read
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            sent += len(message.get("body", b""))
            try:
                async with asyncio.timeout(SLOWEST):
                    await send(message)
            except TimeoutError as error:  # the answer ends here, incomplete
                stalled = True
                raise Stalled("the client does not read its answer") from error

        try:
            if scope["path"] in OPEN:
                await asyncio.sleep(self._admission.ask(_network(scope)))
            else:
                self._check_disk()
                key = _key(scope)
                if key and (tenant := self._admission.tenant(key)):
                    state["tenant"] = tenant
                    CLIENT.set(tenant)
                    delay = self._admission.begin(tenant)
                    counts = tenant
                    if delay:
                        await asyncio.sleep(delay)
                state["caller"] = caller = await self._caller(scope, key)
                if not caller.key:
                    _check_origin(scope)
                CLIENT.set(caller.tenant)
                if not counts:
                    self._admission.begin(caller.tenant)
                    counts = caller.tenant
            body = await self._body(scope, receive)
            received, whole = len(body), True
            await self._app(scope, _replayed(body, receive), counted)
        except ClientLeft:
            status = 499  # the client has disconnected
        except TimeoutError:
            slow = JSONResponse(self._shape(scope)(408, "the request came too slowly"), 408)
            await _answer(begun, slow, scope, receive, counted)
        except Exception as error:
            ended = True  # these requests need no key
            if not isinstance(error, FinetoothError) and not stalled:
                self._failures.error(f"{scope['method']} {_route(scope)} failed", error)
            await _answer(begun, problem(error, self._shape(scope)), scope, receive, counted)
        finally:
            if counts:
                self._admission.end(counts)
            if scope["path"] not in QUIET and status not in (202, 408):
                self._record(scope, state, received, sent, status)

    def _check_disk(self) -> None:
        """
        Raises:
            DiskFull: this request could not be recorded.
        """
        check_room(self._service.settings.folder)
        if self._service.audit.behind:
            raise DiskFull

    def _shape(self, scope: MutableMapping[str, Any]) -> Shape:
        """The format of this request's errors."""
        return next((shape for path, shape in self._shapes.items() if scope["path"].startswith(path)), plain)

    async def _caller(self, scope: MutableMapping[str, Any], key: str) -> Caller:
        """The caller, from a key or a ticket for this file, before the body is read.

        Raises:
            Unauthorised: no valid key.
            TooMuch: no valid key, and too many such requests from this address.
        """
        ticket = _ticket(scope) if not key and scope["method"] == "GET" else ""
        known = bool(key and self._admission.tenant(key))
        name = _network(scope)
        if not known:
            CLIENT.set(name)  # until its tenant is known
            open_to_all = not key and self._service.settings.keyless
            if not (ticket or open_to_all) and self._admission.suspects(name):
                name = await asyncio.to_thread(self._service.keys.named_by, key) or name  # a key that there is has a
                if self._admission.suspects(name):  # rate of its own
                    raise await self._admission.refuse(name)
        try:
            caller = await asyncio.to_thread(self._look_up, key, ticket, scope["path"])
        except Unauthorised:
            self._admission.forget(key)
            suspect = self._admission.suspects(name)
            self._admission.note_stranger(name)
            if suspect:
                raise await self._admission.refuse(name) from None
            raise
        if key and not known:
            self._admission.learn(key, caller.tenant)
        return caller

    def _look_up(self, key: str, ticket: str, path: str) -> Caller:
        if ticket:
            return self._service.tickets.caller(ticket, path)
        return self._service.keys.caller(key or None, keyless=self._service.settings.keyless)

    async def _check_still(self, state: Any) -> None:
        """Check that the key of a long request is still valid; otherwise its answer ends here.

        Raises:
            Unauthorised: it was revoked, or has expired.
        """
        caller = state.get("caller")
        if caller is None:
            return
        keyless = self._service.settings.keyless
        if not await asyncio.to_thread(self._service.keys.holds, caller.key, keyless=keyless):
            raise Unauthorised("the API key is no longer valid", action="send one that `ft keys create` made")

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """The whole body, before anything reads it.

        Raises:
            Busy: incoming bodies already fill their room.
            ClientLeft: the client disconnected before the end: an incomplete body does not count.
            TooLarge: it is longer than allowed, or holds too many values.
            TimeoutError: it comes too slowly.
        """
        limits = self._service.settings.limits
        too_large = TooLarge(f"a request of more than {limits.body} bytes", action="send less at once")
        if _announced(scope) > limits.body:
            raise too_large
        body, values, begun = bytearray(), 0, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(begun + SLOWEST) as limit:
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ClientLeft("the client left before the end of its request")
                    part = message.get("body", b"")
                    body += part
                    self._coming += len(part)
                    values += part.count(b",")
                    if len(body) > limits.body:
                        raise too_large
                    if self._coming > limits.coming:
                        raise Busy("too many large requests are coming in", action="try again later")
                    if not message.get("more_body", False):
                        break
                    limit.reschedule(begun + SLOWEST + len(body) / LEAST_RATE)
            if values >= limits.values:
                raise TooLarge(f"a request of more than {limits.values} values", action="send less at once")
            return bytes(body)
        finally:
            self._coming -= len(body)

    def _record(self, scope: MutableMapping[str, Any], state: Any, received: int, sent: int, status: int) -> None:
        route = _route(scope)
        caller = state.get("caller")
        if caller is None and status in (401, 429, 503):
            self._service.refusals.add(f"{scope['method']} {route}", str(state.get("tenant", "")), str(status))
            return
        self._service.audit.add(
            f"{scope['method']} {route}",
            tenant=caller.tenant if caller else "",
            key=caller.key if caller else "",
            model=str(scope.get("path_params", {}).get("session", "") or state.get("model", ""))[:160],
            received=received,
            sent=sent,
            outcome=str(status),
        )


class ClientLeft(Exception):
    """A client disconnected before its request was complete."""


class Stalled(OSError):
    """A client stopped reading its answer."""


class TooLarge(Refused):
    """A body exceeds the limit."""

    status = 413


def plain(status: int, message: str) -> Any:
    """The body of a refusal in the format of this server's own faces."""
    return {"error": message}


def problem(error: Exception, shape: Shape = plain) -> Response:
    """An error as an answer: one line, no trace."""
    status, message, headers = 500, "the server failed; its own log says why", {}
    if isinstance(error, UserError):
        status, message = (error.status if isinstance(error, Refused) else 400), str(error)
        if isinstance(error, TooMuch | Busy):
            headers = {"Retry-After": str(error.after if isinstance(error, TooMuch) else 1)}
    if isinstance(error, FinetoothError) and (blame := category_of(error)) != "user":
        status, message = STATUS[blame], str(error)
    return JSONResponse(shape(status, brief(message)), status, headers=headers)


def _route(scope: MutableMapping[str, Any]) -> str:
    """The path of the route, without ids; `unknown` without a route."""
    return getattr(scope.get("route"), "path", "") or "unknown"


def _has_body(scope: MutableMapping[str, Any]) -> bool:
    """Whether the request's head announces a body."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _announced(scope: MutableMapping[str, Any]) -> int:
    """The body's length from the request's head; 0 if not given."""
    length: bytes = dict(scope["headers"]).get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


def _key(scope: MutableMapping[str, Any]) -> str:
    """The key of `Authorization: Bearer KEY` or `X-API-Key: KEY`; empty without one."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    kind, _, bearer = headers.get(b"authorization", "").partition(" ")
    return headers.get(b"x-api-key") or (bearer.strip() if kind.lower() == "bearer" else "")


def _network(scope: MutableMapping[str, Any]) -> str:
    """The name for the address that a request comes from."""
    return network_of(scope["client"][0]) if scope.get("client") else ""


def _ticket(scope: MutableMapping[str, Any]) -> str:
    """The `ticket` of the query; empty if there is none."""
    query: bytes = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("ticket", [""])[0]


def _check_origin(scope: MutableMapping[str, Any]) -> None:
    """Without keys, every request from this machine is accepted. So refuse requests of web pages in a local browser,
    also under another host name, and of local proxies.

    Raises:
        Forbidden: it comes from such a page, or through a proxy.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    urls = [prefix + headers[name] for name, prefix in ((b"host", "//"), (b"origin", "")) if name in headers]
    if FORWARDED & headers.keys() or not all(map(is_loopback_url, urls)):
        raise Forbidden("this server is for this machine alone", action="call it by its address, or make a key")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with the body that was read."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(
    begun: bool, response: Response, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    if not begun:
        await response(scope, receive, send)
