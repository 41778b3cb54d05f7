"""Tokens of calls that are being sampled, for clients that want them before the call is finished.

Nothing waits for a client here: what was written stands in a list until the call is finished, and a client that reads
slowly gets more at once. What it missed is in the call's result.
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
"""Times in a second that a tenant's streams together look for new tokens: with many of them each has more at once."""

HEARTBEAT = 10.0
"""Seconds after which a client that waits is told that the server still works."""


@dataclass(frozen=True)
class Piece:
    """Tokens that follow each other in one completion.

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
    """The tokens of all calls under way.

    Args:
        log: where results are.
        most: clients of a tenant that may follow at once.
    """

    def __init__(self, log: Log, *, most: int) -> None:
        self._log, self._most = log, most
        self._feeds: dict[str, _Feed] = {}
        self._bells = Bells()
        self._following: dict[str, int] = {}
        self._lock = threading.Lock()

    # --- the writer's side --------------------------------------------------------------------------------------------

    def write(self, call: str, completion: int, token: int, logprob: float) -> None:
        """A token was written; `ring` tells of it."""
        feed = self._feeds.get(call)
        if feed is None:
            feed = self._feeds[call] = _Feed()
        if completion not in feed.written:
            with self._lock:  # a follower may be looking through them
                feed.written[completion] = [], []
        tokens, logprobs = feed.written[completion]
        logprobs.append(logprob)
        tokens.append(token)  # last: as many tokens as there are can be read

    def ring(self, call: str) -> None:
        """Wake the clients that follow a call."""
        self._bells.ring(call)

    def end(self, call: str) -> None:
        """The call is finished, or starts over; its tokens are in the log, or nowhere."""
        self._feeds.pop(call, None)
        self.ring(call)

    # --- the clients' side --------------------------------------------------------------------------------------------

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """Be one of those who follow.

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
        """What a call writes, from its beginning; None where nothing came for a while; the finished call at the end.

        Raises:
            Unknown: the call does not exist, or is another tenant's.
        """
        call = await asyncio.to_thread(self._log.fetch, caller, id_)
        seen: dict[int, int] = {}
        with self._bells.bell(id_) as event:
            while True:
                event.clear()  # whatever is written from here on rings again
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
        await asyncio.to_thread(lambda: call.result)  # read once, and not while others wait
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
    """What of a finished call was not seen yet."""
    if call.state != DONE:
        return
    for number, completion in enumerate(completions_of(call.result)):
        begin = seen.get(number, 0)
        tokens, logprobs = completion["tokens"], completion["logprobs"]
        if begin < len(tokens):
            seen[number] = len(tokens)
            yield Piece(number, begin, tuple(tokens[begin:]), tuple(logprobs[begin:]))


def completions_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The completions of a call's result, one behind the other; of a call that samples nothing there are none."""
    completions = result.get("completions") or []
    return [completion for group in completions for completion in (group if isinstance(group, list) else [group])]
