"""Streams tokens of running sampling calls to clients.

Sampling never waits for a client: tokens stay in a list until the call finishes, and a slow client gets more at once.
The call's result has what it missed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from finetooth_server.bells import Bells
from finetooth_server.faults import TooMuch
from finetooth_server.keeping.records import DONE, QUEUED
from finetooth_server.keys import Caller
from finetooth_server.log import Call, Log

LOOKS = 100.0
"""Polls per second of a tenant's streams together: with many streams, each gets more at once."""

HEARTBEAT = 10.0
"""Seconds between signs of life for a waiting client."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one completion.

    Attributes:
        completion: counted over the whole call: prompt by prompt, sample by sample.
        index: place of the first of them in the completion.
    """

    completion: int
    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass
class _Feed:
    """Tokens and log-probabilities so far, by completion."""

    written: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)


class Streams:
    """The tokens of all running calls.

    Args:
        log: with the results.
        most: streams of a tenant at once.
    """

    def __init__(self, log: Log, *, most: int) -> None:
        self._log, self._most = log, most
        self._feeds: dict[str, _Feed] = {}
        self._bells = Bells()
        self._following: dict[str, int] = {}
        self._lock = threading.Lock()

    # --- the writer's side --------------------------------------------------------------------------------------------

    def write(self, call: str, completion: int, token: int, logprob: float) -> None:
        """Add a token; `ring` announces it."""
        feed = self._feeds.get(call)
        if feed is None:
            feed = self._feeds[call] = _Feed()
        if completion not in feed.written:
            with self._lock:  # a follower may be reading them
                feed.written[completion] = [], []
        tokens, logprobs = feed.written[completion]
        logprobs.append(logprob)
        tokens.append(token)  # last, so that all counted tokens can be read

    def ring(self, call: str) -> None:
        """Wake the clients that follow a call."""
        self._bells.ring(call)

    def end(self, call: str) -> None:
        """Drop the tokens of a call that finished or starts again."""
        self._feeds.pop(call, None)
        self.ring(call)

    # --- the clients' side --------------------------------------------------------------------------------------------

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """Take a stream's place.

        Raises:
            TooMuch: the tenant's places are taken.
        """
        with self._lock:
            count = self._following.get(caller.tenant, 0)
            if count >= self._most:
                raise TooMuch(f"{count} streams are open", action="wait until one ends")
            self._following[caller.tenant] = count + 1
        try:
            yield
        finally:
            with self._lock:
                self._following[caller.tenant] -= 1
                if not self._following[caller.tenant]:
                    del self._following[caller.tenant]

    async def follow(self, caller: Caller, id_: str) -> AsyncGenerator[Piece | Call | None, None]:
        """The tokens of a call, from its beginning; None if nothing came for a while; the finished call at the end.

        Raises:
            Unknown: the call does not exist, or is another tenant's.
        """
        call = await asyncio.to_thread(self._log.fetch, caller, id_)
        seen: dict[int, int] = {}
        with self._bells.bell(id_) as event:
            while True:
                event.clear()  # later tokens ring again
                for piece in list(self._live(id_, seen)):
                    yield piece
                if id_ not in self._feeds:  # it has not begun, or has ended
                    call = await asyncio.to_thread(self._log.fetch, caller, id_)
                    if call.state != QUEUED:
                        break
                if (others := self._following.get(caller.tenant, 1) - 1) > 0:
                    await asyncio.sleep(others / LOOKS)
                try:
                    await asyncio.wait_for(event.wait(), HEARTBEAT)
                except TimeoutError:
                    yield None
        await asyncio.to_thread(lambda: call.result)  # read once, outside the event loop
        for piece in _whole(call, seen):
            yield piece
        yield call

    def _live(self, id_: str, seen: dict[int, int]) -> Iterator[Piece]:
        feed = self._feeds.get(id_)
        if feed is None:
            return
        with self._lock:
            written = dict(feed.written)
        for completion, (tokens, logprobs) in sorted(written.items()):
            begin, end = seen.get(completion, 0), len(tokens)
            if begin < end:
                seen[completion] = end
                yield Piece(completion, begin, tuple(tokens[begin:end]), tuple(logprobs[begin:end]))


def _whole(call: Call, seen: dict[int, int]) -> Iterator[Piece]:
    """The undelivered rest of a finished call."""
    if call.state != DONE:
        return
    for number, completion in enumerate(completions_of(call.result)):
        begin = seen.get(number, 0)
        tokens, logprobs = completion["tokens"], completion["logprobs"]
        if begin < len(tokens):
            seen[number] = len(tokens)
            yield Piece(number, begin, tuple(tokens[begin:]), tuple(logprobs[begin:]))


def completions_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The completions of a call's result, one after the other; empty for a call without sampling."""
    completions = result.get("completions") or []
    return [completion for group in completions for completion in (group if isinstance(group, list) else [group])]
