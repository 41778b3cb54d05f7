"""Who may ask the board, and from which page: what a browser sends for a stranger is refused."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from finetooth_toolbox.loopback import is_loopback_url
from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
ROWS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'self'"
"""Of a page of rows, which has its style in it."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with less, browsers say `Origin: null` for our own forms
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
FORWARDED = {"forwarded", "x-forwarded-for", "x-forwarded-host"}
"""Headers by which a proxy says that a request is another machine's."""
LARGEST = 1 << 28
"""Bytes of a request: a file of rows."""


class Guard:
    """ASGI middleware: host, origin, key and size of a request; headers of every answer.

    Args:
        app: what answers.
        admits: whether what a browser gives as the password is a key; None: being on this machine is enough.
    """

    def __init__(self, app: App, admits: Callable[[str], bool] | None) -> None:
        self._app, self._admits = app, admits

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message.get("headers", ())}
                more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope, headers)
        if problem is not None:
            await problem(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _problem(self, scope: Scope, headers: Mapping[str, str]) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self._admits is None and (FORWARDED & headers.keys() or not is_loopback_url(f"//{host}")):
            return PlainTextResponse("this board serves only this machine: open it by its address\n", 403)
        if self._admits is not None and not self._admits(_password(headers.get("authorization", ""))):
            hint = "the password is the board's key; the name does not matter\n"
            return PlainTextResponse(hint, 401, {"www-authenticate": 'Basic realm="finetooth", charset="UTF-8"'})
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            same = origin is not None and urlsplit(origin).netloc == host
            if not same or headers.get("sec-fetch-site", "same-origin") != "same-origin":
                return PlainTextResponse("only this board's own pages may change something\n", 403)
            length = headers.get("content-length", "")
            if not length.isdigit() or int(length) > LARGEST:
                return PlainTextResponse(f"a request says its length, at most {LARGEST:,} bytes\n", 413)
        return None


def _password(authorization: str) -> str:
    """What a browser gave; empty if nothing."""
    kind, _, credentials = authorization.partition(" ")
    try:
        _, _, password = base64.b64decode(credentials, validate=True).partition(b":")
    except ValueError:
        return ""
    return password.decode("utf-8", "replace") if kind.lower() == "basic" else ""


class Tokens:
    """The token that every form of this process carries, so that no other page can make one."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)

    def fits(self, token: str) -> bool:
        """Whether a form is one of ours."""
        return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self.token.encode())
