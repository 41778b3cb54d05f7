"""REST's answer with a call: the result's bytes from the log, without parsing them. A result may have many megabytes,
and parsing or writing JSON stops all other threads."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from finetooth_server.log import Call

PART = 2**18
"""Bytes per write to a connection."""


class CallAnswer(Response):
    """Status 200 for a finished call, else 202."""

    media_type = "application/json"

    def __init__(self, call: Call) -> None:
        super().__init__(call_bytes(call), 202 if call.state == "queued" else 200)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer in parts."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for begin in range(0, len(body), PART):
            part = {"body": bytes(body[begin : begin + PART]), "more_body": begin + PART < len(body)}
            await send({"type": "http.response.body", **part})


def call_json(call: Call) -> dict[str, Any]:
    """A call for clients."""
    return {**_head(call), "result": call.result, "error": _error(call)}


def call_bytes(call: Call) -> bytes:
    """`call_json` as JSON, in one line."""
    head, error = (json.dumps(part, separators=(",", ":")).encode() for part in (_head(call), _error(call)))
    return b'%s,"result":%s,"error":%s}' % (head[:-1], call.written or b"null", error)


def _head(call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "session": call.queue.removeprefix("sampler:"),
        "seq": call.seq,
        "operation": call.operation,
        "state": call.state,
    }


def _error(call: Call) -> dict[str, Any] | None:
    if call.state != "failed":
        return None
    return {"category": call.blame, "message": call.error, "status": call.status}
