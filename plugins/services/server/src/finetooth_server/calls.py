"""Calls in the log: for clients, for execution, and for the operator."""

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
"""The batch of invalid sampling calls, which read no weights."""

CRASHES = 2
"""Server ends during a call after which it fails instead of being executed again, if it ran alone at one of them."""

CANCELLED = "the call was cancelled, and changed nothing"
"""The error of a call whose client cancelled it."""

Category = str
"""`user`: the client can fix it. Others: `server`: this server failed; `upstream`: another server that it uses failed;
`late`: that one did not answer in time; `full`: this server's disk is full."""

STATUS: Mapping[Category, int] = {"user": 400, "upstream": 502, "late": 504, "full": 507}
"""HTTP's status by category; of others 500."""


def category_of(error: FinetoothError) -> Category:
    """The category of an error, from it or its causes."""
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
        written: the result as stored JSON, once done.
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
        """The category of a failed call for clients: `user` or `server`."""
        return "user" if self.category == "user" else "server"

    @property
    def status(self) -> int:
        """HTTP's, of a failed call."""
        return STATUS.get(self.category, 500)

    @cached_property
    def result(self) -> Any:
        """The result in `written`. Parsing a large one blocks all other threads."""
        return None if self.written is None else json.loads(self.written)


@dataclass(frozen=True)
class Due:
    """A call to execute or to replay.

    Attributes:
        batch: calls with the same text may be computed together.
        arguments: JSON; None once no replay needs it.
        begun: executions without a result, because the server ended.
        alone: value of `begun` when the call last ran alone; 0: never.
        dropped: the server's operator cancelled it.
        cancelled: its client cancelled it.
        revoked: its key is no longer valid.
        tokens, memory: its estimated cost.
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
        """Why it must not be executed; else empty."""
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
    """Calls with the most server ends first, and tenants in turn."""
    places: Counter[tuple[str, int]] = Counter()
    placed = []
    for call in due:
        placed.append((-call.begun, places[call.tenant, call.begun], call))
        places[call.tenant, call.begun] += 1
    return [call for *_, call in sorted(placed, key=lambda entry: entry[:2])]


@dataclass(frozen=True)
class Waiting:
    """A waiting call, for the server's operator.

    Attributes:
        created: seconds since 1970.
        begun: number of server ends during its execution.
        size: bytes of its stored arguments.
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
