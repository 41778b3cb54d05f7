"""Calls as the log has them: as their clients see them, as they are executed, and as the operator sees them wait."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from finetooth_hooks import FinetoothError, UpstreamError
from finetooth_toolbox import blame

REFUSED = "refused"
"""The batch of sampling calls that are known to be wrong: they read no weights."""

CRASHES = 2
"""So often a call may be under way when the server ends, if at one of these times nothing else was; then it fails
instead of being executed once more."""

CANCELLED = "the call was cancelled, and changed nothing"
"""The error of a call whose client cancelled it."""

Category = str
"""`user`: the client can do something about it. It cannot: `server`, this one failed; `upstream`, another one that it
asks did; `late`, that one did not answer in time; `full`, this one's disk has no room."""

STATUS: Mapping[Category, int] = {"user": 400, "upstream": 502, "late": 504, "full": 507}
"""HTTP's status by category; of others 500."""


def category_of(error: FinetoothError) -> Category:
    """Whose fault an error is: of another server or of a full disk if that is what it, or what it came from, says."""
    if blame.is_full(error):
        return "full"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UpstreamError):
            return "late" if cause.late else "upstream"
        cause = cause.__cause__
    return "user"


@dataclass(frozen=True)
class Call:
    """A call as the log has it.

    Attributes:
        queue: a model's id, or `sampler:` and a sampling session's, as its client knows it.
        seq: its number there.
        state: `queued`, `done` or `failed`.
        written: the result as JSON, as it was written down, once done.
        error, category: once failed.
    """

    id: str
    tenant: str
    queue: str
    seq: int
    operation: str
    state: str
    written: bytes | None = None
    error: str = ""
    category: Category = ""

    @property
    def blame(self) -> str:
        """Whose fault a failed call is, as clients are told: `user` or `server`."""
        return "user" if self.category == "user" else "server"

    @property
    def status(self) -> int:
        """HTTP's, of a failed call."""
        return STATUS.get(self.category, 500)

    @cached_property
    def result(self) -> Any:
        """The result in `written`. Parsing a large one takes time, in which all other threads wait."""
        return None if self.written is None else json.loads(self.written)


@dataclass(frozen=True)
class Due:
    """A call to execute, or to apply again.

    Attributes:
        batch: calls with the same text may be computed together.
        arguments: JSON; None once no replay needs it.
        begun: how often its execution began and no result came of it: so often the server ended meanwhile.
        alone: the last time that the call ran alone, counted as `begun` is; 0 is never.
        dropped: the operator of the server wants it to fail.
        cancelled: its client wants it to fail.
        revoked: the key that it came with is no longer valid.
        tokens, memory: what it takes, as estimated when it came.
    """

    id: str
    tenant: str
    queue: str
    seq: int
    operation: str
    batch: str | None
    state: str
    arguments: bytes | None
    begun: int = 0
    dropped: bool = False
    cancelled: bool = False
    revoked: bool = False
    tokens: int = 0
    memory: int = 0
    alone: int = 0

    @property
    def hopeless(self) -> str:
        """Why it is not to be executed; empty if it is."""
        if self.cancelled:
            return CANCELLED
        if self.dropped:
            return "the operator of the server dropped the call (send another one)"
        if self.revoked:
            return "the key that it came with was revoked"
        if self.begun >= CRASHES and 0 < self.alone <= self.begun:
            return f"the server ended {self.begun} times while it was executed (send less at once)"
        return ""


def in_turn(due: Iterable[Due]) -> list[Due]:
    """Those first that met the most ends of a server, and of each tenant one in turn."""
    places: Counter[tuple[str, int]] = Counter()
    placed = []
    for call in due:
        placed.append((-call.begun, places[call.tenant, call.begun], call))
        places[call.tenant, call.begun] += 1
    return [call for *_, call in sorted(placed, key=lambda entry: entry[:2])]


@dataclass(frozen=True)
class Waiting:
    """A call that waits, as the server's operator sees it.

    Attributes:
        created: seconds since 1970.
        begun: how often a server ended while it was executed.
        size: bytes of its arguments as they are kept.
    """

    id: str
    tenant: str
    queue: str
    seq: int
    operation: str
    created: float
    begun: int
    dropped: bool
    size: int
