"""The log of calls: what was asked, before it is done; what came out, once.

A call stands in a queue (a model's, or a sampling session's) under a number that its client chose. The same number
again is the same call: its arguments are not looked at a second time.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from finetooth_server.faults import TooMuch, Unknown
from finetooth_server.keys import Caller
from finetooth_server.records import DONE, FAILED, QUEUED, Records, calls, models, now

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
    """

    def __init__(self, records: Records, *, most: int) -> None:
        self._records, self._most = records, most
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

    def next_batch(self, most: int) -> Sequence[Row[Any]]:
        """Sampling calls that can be computed together: the oldest, and what is like it."""
        with self._records.read() as connection:
            waiting = (calls.c.state == QUEUED) & calls.c.batch.is_not(None)
            oldest = connection.execute(select(calls.c.batch).where(waiting).order_by(calls.c.created).limit(1)).first()
            if oldest is None:
                return []
            rows = connection.execute(
                select(calls).where(waiting, calls.c.batch == oldest.batch).order_by(calls.c.created).limit(most)
            )
            return rows.all()

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
        text = None
        if not error:
            try:
                text = json.dumps(result, separators=(",", ":"), allow_nan=False).encode()
            except ValueError:
                error, category = f"{call.operation}: the result holds a number that is not finite", "server"
        with self._records.write() as connection:
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
            if done.rowcount and marks:
                connection.execute(update(models).where(models.c.id == call.queue).values(**marks))
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
