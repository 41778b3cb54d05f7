"""The log of calls: what was asked, before it is done; what came out, once.

A call stands in a queue (a model's, or a sampling session's) under a number that its client chose. The same number
again is the same call: its arguments are not looked at a second time.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from finetooth_server.faults import Busy, TooMuch, Unknown
from finetooth_server.keys import Caller
from finetooth_server.records import DONE, FAILED, QUEUED, Records, calls, models, now

REFUSED = "refused"
"""The batch of sampling calls that are known to be wrong: they read no weights."""

Category = str
"""`user`: the client can do something about it; `server`: it cannot."""


@dataclass(frozen=True)
class Call:
    """A call as the log has it.

    Attributes:
        queue: a model's id, or `sampler:` and a sampling session's.
        seq: its number there.
        state: `queued`, `done` or `failed`.
        result: JSON, once done.
        error, category: once failed.
    """

    id: str
    tenant: str
    queue: str
    seq: int
    operation: str
    state: str
    result: Any = None
    error: str = ""
    category: Category = ""


class Log:
    """The calls of a server.

    Args:
        most: calls of a tenant that may wait.
        most_of_all: calls that may wait, of all tenants together.
    """

    def __init__(self, records: Records, *, most: int, most_of_all: int = 2**31) -> None:
        self._records, self._most, self._most_of_all = records, most, most_of_all
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._lock = threading.Lock()

    # --- in -----------------------------------------------------------------------------------------------------------

    def submit(
        self,
        tenant: str,
        queue: str,
        seq: int | None,
        operation: str,
        arguments: Any,
        *,
        face: str,
        batch: str | None = None,
        error: str = "",
    ) -> Call:
        """Write a call down.

        Args:
            seq: None takes the next number.
            batch: calls with the same text may be computed together, in any order.
            error: the call is known to be wrong: it takes its place in the sequence, and fails there.

        Raises:
            TooMuch: the tenant has too many calls waiting.
            Busy: all tenants together have.
        """
        content = json.dumps({"arguments": arguments, "refused": error}, separators=(",", ":")).encode()
        row = {
            "id": secrets.token_hex(16),
            "tenant": tenant,
            "queue": queue,
            "operation": operation,
            "face": face,
            "batch": batch,
            "arguments": content,
            "state": QUEUED,
            "created": now(),
        }
        with self._records.write() as connection:
            if seq is not None:
                known = connection.execute(select(calls).where(calls.c.queue == queue, calls.c.seq == seq)).first()
                if known is not None:
                    return _call(known)
            waiting = connection.scalar(
                select(func.count()).select_from(calls).where(calls.c.tenant == tenant, calls.c.state == QUEUED)
            )
            if waiting and waiting >= self._most:
                raise TooMuch(f"{waiting} calls are waiting", action="wait for some of them")
            of_all = connection.scalar(select(func.count()).select_from(calls).where(calls.c.state == QUEUED))
            if of_all and of_all >= self._most_of_all:
                raise Busy(f"{of_all} calls are waiting, of all clients together", action="try again later")
            if seq is None:
                last = connection.scalar(select(func.max(calls.c.seq)).where(calls.c.queue == queue))
                seq = 0 if last is None else last + 1
            connection.execute(insert(calls).values({**row, "seq": seq}))
        return Call(str(row["id"]), tenant, queue, seq, operation, QUEUED)

    # --- work ---------------------------------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        """Models with calls that wait, in the order in which they came."""
        with self._records.read() as connection:
            rows = connection.execute(
                select(calls.c.queue, func.min(calls.c.created))
                .where(calls.c.state == QUEUED, calls.c.batch.is_(None))
                .group_by(calls.c.queue)
                .order_by(func.min(calls.c.created))
            )
            return [row.queue for row in rows]

    def next_of(self, queue: str) -> Row[Any] | None:
        """The call that is due in a model's queue; None while its number has not come."""
        with self._records.read() as connection:
            return connection.execute(
                select(calls)
                .join(models, models.c.id == calls.c.queue)
                .where(calls.c.queue == queue, calls.c.seq == models.c.applied + 1, calls.c.state == QUEUED)
            ).first()

    def oldest_waiting(self, besides: Collection[str]) -> dict[str, float]:
        """When the oldest sampling call came, by batch.

        Args:
            besides: calls that are being written.
        """
        with self._records.read() as connection:
            rows = connection.execute(
                select(calls.c.batch, func.min(calls.c.created)).where(*_waiting(besides)).group_by(calls.c.batch)
            )
            return {row[0]: row[1] for row in rows}

    def waiting_in(self, batch: str, besides: Collection[str], *, before: float, most: int) -> Sequence[Row[Any]]:
        """Sampling calls of a batch that came before a moment, in the order of their coming."""
        with self._records.read() as connection:
            return connection.execute(
                select(calls)
                .where(*_waiting(besides), calls.c.batch == batch, calls.c.created <= before)
                .order_by(calls.c.created)
                .limit(most)
            ).all()

    def between(self, queue: str, first: int, last: int) -> Sequence[Row[Any]]:
        """Calls of a queue in their order, both ends included, for a replay."""
        with self._records.read() as connection:
            return connection.execute(
                select(calls)
                .where(calls.c.queue == queue, calls.c.seq >= first, calls.c.seq <= last)
                .order_by(calls.c.seq)
            ).all()

    def finish(self, call: Row[Any], result: Any, *, error: str = "", category: Category = "", **marks: int) -> None:
        """Write down what came out, in one transaction with what it means for the model. A call is finished once.

        Args:
            marks: columns of the model: `applied`, `stepped`, `snapshot`.
        """
        with self._records.write() as connection:
            if _finish(connection, call, result, error, category) and marks:
                connection.execute(update(models).where(models.c.id == call.queue).values(**marks))
        self._announce(call.id)

    def finish_all(self, ended: Sequence[tuple[Row[Any], Any]]) -> None:
        """`finish` for sampling calls and their results, in one transaction."""
        with self._records.write() as connection:
            for call, result in ended:
                _finish(connection, call, result, "", "")
        for call, _ in ended:
            self._announce(call.id)

    def forget(self, queue: str, before: int) -> None:
        """Drop the arguments of calls that no replay needs any more; results stay."""
        with self._records.write() as connection:
            connection.execute(
                update(calls)
                .where(calls.c.queue == queue, calls.c.seq < before, calls.c.state != QUEUED)
                .values(arguments=None)
            )

    # --- out ----------------------------------------------------------------------------------------------------------

    def fetch(self, caller: Caller, id_: str) -> Call:
        """A call of the caller's.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        with self._records.read() as connection:
            row = connection.execute(select(calls).where(calls.c.id == id_)).first()
        if row is None or row.tenant != caller.tenant:
            raise Unknown(f"no call {id_!r}", action="use the id that the call was answered with")
        return _call(row)

    async def wait(self, caller: Caller, id_: str, seconds: float) -> Call:
        """A call of the caller's, when it is finished or the time is over.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        event = asyncio.Event()
        entry = (asyncio.get_running_loop(), event)
        with self._lock:
            self._waiting.setdefault(id_, []).append(entry)
        try:
            found = await asyncio.to_thread(self.fetch, caller, id_)
            if found.state == QUEUED and seconds > 0:
                try:
                    await asyncio.wait_for(event.wait(), seconds)
                except TimeoutError:
                    return found
                found = await asyncio.to_thread(self.fetch, caller, id_)
            return found
        finally:
            with self._lock:
                left = [one for one in self._waiting.get(id_, []) if one is not entry]
                if left:
                    self._waiting[id_] = left
                else:
                    self._waiting.pop(id_, None)

    def _announce(self, id_: str) -> None:
        with self._lock:
            for loop, event in self._waiting.get(id_, []):
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)


def _waiting(besides: Collection[str]) -> list[ColumnElement[bool]]:
    waiting = [calls.c.state == QUEUED, calls.c.batch.is_not(None)]
    return [*waiting, calls.c.id.not_in(besides)] if besides else waiting


def _finish(connection: Connection, call: Row[Any], result: Any, error: str, category: Category) -> bool:
    """Whether the call had not been finished before."""
    text = None
    if not error:
        try:
            text = json.dumps(result, separators=(",", ":"), allow_nan=False).encode()
        except ValueError:
            error, category = f"{call.operation}: the result holds a number that is not finite", "server"
    done = connection.execute(
        update(calls)
        .where(calls.c.id == call.id, calls.c.state == QUEUED)
        .values(
            state=FAILED if error else DONE,
            result=text,
            error=error or None,
            category=category or None,
            finished=now(),
        )
    )
    return bool(done.rowcount)


def _call(row: Row[Any]) -> Call:
    return Call(
        row.id,
        row.tenant,
        row.queue,
        row.seq,
        row.operation,
        row.state,
        None if row.result is None else json.loads(row.result),
        row.error or "",
        row.category or "",
    )
