"""Parses and checks bodies of REST requests in a thread outside the event loop, in parts, so that a body of millions of
values delays only its own client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from itertools import takewhile
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from finetooth_wire import json_parts
from finetooth_wire.bounds import brief

SMALL = 2**14
"""Bytes of a body that is parsed at once: a thread would take longer to start."""


class WrongBody(HTTPException):
    """The error for an invalid body."""

    def __init__(self, message: str) -> None:
        super().__init__(422, message)


def body_fault(fault: Mapping[str, Any]) -> str:
    """An error of pydantic about a body, in one line."""
    parts = [str(part) for part in fault["loc"] if part != "body"]
    where = ".".join(takewhile(lambda part: "(" not in part, parts))  # then comes the name of a validator
    if len(where) < len(".".join(parts)):
        return brief(f"{where}: the value has none of the forms that it may have (see /docs for them)")
    if not where and fault["type"] in ("missing", "model_attributes_type"):
        return "the body is not a JSON object (send one, {} without arguments, with Content-Type: application/json)"
    return brief(f"{where}: {fault['msg']}" if where else str(fault["msg"]))


async def beside(read: Callable[[bytes], Any], content: bytes) -> Any:
    """Parse a body in a thread, unless it is small."""
    return read(content) if len(content) <= SMALL else await asyncio.to_thread(read, content)


class ReadRoute(APIRoute):
    """A route whose body is checked outside the event loop, before FastAPI: it accepts an instance of the model
    unchanged."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle, field = super().get_route_handler(), self.body_field

        def checked(content: bytes) -> Any:
            try:
                body = json_parts.received(content)
            except ValueError as error:
                raise WrongBody(f"the body cannot be read: {error}") from error
            value, faults = field.validate(body, {}, loc=("body",))  # type: ignore[union-attr]
            if faults:
                raise WrongBody(body_fault(faults[0] if isinstance(faults, list) else faults))
            return value

        class ReadRequest(Request):
            async def json(self) -> Any:
                if not hasattr(self, "_json"):
                    self._json = await beside(checked, await self.body())
                return self._json

        async def read(request: Request) -> Response:
            return await handle(ReadRequest(request.scope, request.receive) if field is not None else request)

        return read
