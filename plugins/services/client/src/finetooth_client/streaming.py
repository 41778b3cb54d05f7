"""Reads streams of tokens, for both clients."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
from finetooth_hooks import Completion
from finetooth_wire import wire

from finetooth_client import messages as m
from finetooth_client.dialogues import Patience


@dataclass(frozen=True)
class Piece:
    """New tokens of one completion.

    Attributes:
        completion: counted over the whole call, prompt by prompt, sample by sample.
        index: place of the first token in the completion.
        tokens: ids.
        logprobs: of each, under the unscaled model.
        text: of these tokens. It may include a part of a stop string; the completion's text ends before.
    """

    completion: int
    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str


class _Reader:
    """Read pieces from lines of server-sent events; a repeated stream continues after the last piece."""

    def __init__(self) -> None:
        self.call: Any = None  # the finished one
        self._seen: dict[int, int] = {}
        self._event = ""

    def line(self, line: str) -> Piece | None:
        """The new tokens in a line."""
        name, _, value = line.partition(": ")
        if name == "event":
            self._event = value
        if name != "data":
            return None
        content = json.loads(value)
        if self._event == "end":
            self.call = content
            return None
        number, index = content["completion"], content["index"]
        new = max(0, self._seen.get(number, 0) - index)
        if new >= len(content["tokens"]):
            return None
        self._seen[number] = index + len(content["tokens"])
        # the text of a partly new piece is unknown; the completion has all of it
        text = content["text"] if new == 0 else ""
        return Piece(number, index + new, tuple(content["tokens"][new:]), tuple(content["logprobs"][new:]), text)

    def completions(self) -> list[Completion]:
        """The completions of the finished call.

        Raises:
            CallFailed: it failed.
        """
        result = m.read_call(self.call, m.Sent("generate", read=lambda result: result))
        flat = [
            completion
            for group in result["completions"]
            for completion in (group if isinstance(group, list) else [group])
        ]
        return [wire.decode_completion(completion) for completion in flat]


class TokenStream:
    """Iterate over it once, to the end; then read `completions`. A broken connection is renewed, and no token comes
    twice."""

    def __init__(self, http: httpx.Client, url: str, patience: float, submit: Callable[[], Any]) -> None:
        self._http, self._reader, self._patience = http, _Reader(), Patience(url, patience)
        self.call: str = submit()["id"]
        """Id of the call on the server."""

    def __iter__(self) -> Iterator[Piece]:
        while self._reader.call is None:
            try:
                with self._http.stream("GET", f"/v1/calls/{self.call}/stream") as answer:
                    _check(answer.status_code, answer.read if answer.status_code >= 400 else None)
                    for line in answer.iter_lines():
                        self._patience.reset()
                        piece = self._reader.line(line)
                        if piece is not None:
                            yield piece
            except (httpx.TransportError, _Again) as error:
                time.sleep(self._patience.pause(error.said if isinstance(error, _Again) else error))
        self._reader.completions()  # raises if the call failed

    @property
    def completions(self) -> Sequence[Completion]:
        """All of them, once the stream was read to its end."""
        return self._reader.completions()


class AsyncTokenStream:
    """`TokenStream` for asyncio: `async for`, then `completions`."""

    def __init__(
        self, http: httpx.AsyncClient, url: str, patience: float, submit: Callable[[], Awaitable[Any]]
    ) -> None:
        self._http, self._reader, self._patience = http, _Reader(), Patience(url, patience)
        self._submit = submit
        self.call = ""
        """Id of the call on the server, once iteration began."""

    async def __aiter__(self) -> AsyncIterator[Piece]:
        if not self.call:
            self.call = (await self._submit())["id"]
        while self._reader.call is None:
            try:
                async with self._http.stream("GET", f"/v1/calls/{self.call}/stream") as answer:
                    if answer.status_code >= 400:
                        text = (await answer.aread()).decode(errors="replace")
                        _check(answer.status_code, text.encode)
                    async for line in answer.aiter_lines():
                        self._patience.reset()
                        piece = self._reader.line(line)
                        if piece is not None:
                            yield piece
            except (httpx.TransportError, _Again) as error:
                await asyncio.sleep(self._patience.pause(error.said if isinstance(error, _Again) else error))
        self._reader.completions()

    @property
    def completions(self) -> Sequence[Completion]:
        """All of them, once the stream was read to its end."""
        return self._reader.completions()


class _Again(Exception):
    """Whether the stream may be requested again after this error."""

    def __init__(self, refusal: m.ServerError) -> None:
        super().__init__(str(refusal))
        self.said = refusal


def _check(status: int, read: Callable[[], bytes] | None) -> None:
    if status < 400 or read is None:
        return
    refusal = m.read_refusal(status, read().decode(errors="replace"))
    if status in m.RETRIED:
        raise _Again(refusal)
    raise refusal
