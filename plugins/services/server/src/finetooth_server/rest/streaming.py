"""Tokens as they are written, as server-sent events (WHATWG HTML, section 9.2): `tokens` for what was added, `end` with
the finished call, and comments while nothing comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from finetooth_server.batches.streams import Piece
from finetooth_server.keys import Caller
from finetooth_server.log import Call
from finetooth_server.rest.answers import call_bytes
from finetooth_server.rest.routes import ANSWERS, KEYED, CallerOf, ServiceOf
from finetooth_server.service import Service

EVENTS = "text/event-stream"

streaming_router = APIRouter(prefix="/v1", responses={401: {"description": "no valid key"}}, dependencies=KEYED)


class TextSoFar:
    """The text of a completion whose tokens come one by one. Bytes of an incomplete character wait for the rest.

    Args:
        decode: from token ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = self._told = 0

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens add; a token's characters can depend on the previous one, which is decoded
        again."""
        self._tokens += tokens
        before = self._decode(self._tokens[self._context : self._told])
        now = self._decode(self._tokens[self._context :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._context, self._told = self._told, len(self._tokens)
        return now[len(before) :]


@streaming_router.get(
    "/calls/{id}/stream",
    response_class=StreamingResponse,
    responses={
        **ANSWERS,
        200: {"description": "events `tokens` and, last, `end` with the call", "content": {EVENTS: {"schema": {
            "type": "string"}}}},
    },
)  # fmt: skip
async def stream(id: str, caller: CallerOf, service: ServiceOf) -> StreamingResponse:
    """Tokens of a `generate` as they are written, from the beginning of the call; then the call itself. Other calls
    have no tokens, only an end. A stream that broke off can be asked for again."""
    decode = await asyncio.to_thread(_decoder, service, caller, id)
    events = _events(service, caller, id, decode)
    first = await anext(events)  # errors are raised before the answer begins

    async def all_of_them() -> AsyncIterator[str]:
        yield first
        async for event in events:
            yield event

    return StreamingResponse(all_of_them(), media_type=EVENTS, headers={"Cache-Control": "no-store"})


async def _events(
    service: Service, caller: Caller, id_: str, decode: Callable[[Sequence[int]], str]
) -> AsyncIterator[str]:
    texts: dict[int, TextSoFar] = {}
    with service.streams.place(caller):
        yield ": open\n\n"
        async for piece in service.streams.follow(caller, id_):
            if piece is None:
                yield ": still waiting\n\n"
            elif isinstance(piece, Call):
                yield f"event: end\ndata: {call_bytes(piece).decode()}\n\n"
            else:
                text = texts.setdefault(piece.completion, TextSoFar(decode)).add(piece.tokens)
                yield _event("tokens", {**_piece_json(piece), "text": text})


def _decoder(service: Service, caller: Caller, id_: str) -> Callable[[Sequence[int]], str]:
    """The decoder of a call's base model.

    Raises:
        Unknown: the call does not exist, or is another tenant's.
    """
    return service.tokenizer(service.base_of(caller, service.call(caller, id_))).decode


def _piece_json(piece: Piece) -> dict[str, Any]:
    return {
        "completion": piece.completion,
        "index": piece.index,
        "tokens": list(piece.tokens),
        "logprobs": list(piece.logprobs),
    }


def _event(name: str, content: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(content, separators=(',', ':'))}\n\n"
