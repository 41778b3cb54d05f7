"""The log of calls: each call before its execution, and its result once.

A call is in a queue (a model's, or a sampling session's) under a number that its client chose. The same number again is
the same call, without reading its arguments again. This always holds: a result is removed some time after its client
has seen it, and the number then names a call that failed because of that.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from finetooth_wire import json_parts
from sqlalchemy import Connection, Row, func, insert, select, update

from finetooth_server.batches.due_calls import due_in, executable, waiting_besides
from finetooth_server.bells import Bells
from finetooth_server.calls import CANCELLED, CRASHES, REFUSED, Call, Category, Due, Waiting
from finetooth_server.encryption.values import Values
from finetooth_server.faults import Busy, Conflict, TooMuch, Unknown
from finetooth_server.keeping.records import DONE, FAILED, QUEUED, Records, calls, models, now, samplers
from finetooth_server.keys import Caller
from finetooth_server.limits.room import until_room

__all__ = ["CANCELLED", "CRASHES", "REFUSED", "Call", "Category", "Due", "Log", "Waiting"]

COUNTED = 0.5
"""Seconds for which the number of waiting calls is cached."""


class Log:
    """The calls of a server.

    Args:
        most: waiting calls per tenant.
        most_of_all: waiting calls of all tenants.
        values: stores arguments and results.
        kept: seconds that a delivered result is kept, for messages.
    """

    def __init__(self, records: Records, values: Values, *, most: int, kept: float, most_of_all: int = 2**31) -> None:
        self._records, self._values, self._most, self._kept = records, values, most, kept
        self._most_of_all = most_of_all
        self._delivered: set[str] = set()
        self._bells = Bells()
        self._lock = threading.Lock()
        self._counted = 0.0, 0
        self.ended = threading.Event()  # the server ends: no more waits for disk space

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
        key: str = "",
        tokens: int = 0,
        memory: int = 0,
        name: str = "",
    ) -> Call:
        """Record a call.

        Args:
            seq: None: the next number.
            batch: calls with the same text may be computed together, in any order.
            error: of an invalid call, which takes its place in the sequence and fails there.
            key: id of the caller's key; empty without one.
            tokens, memory: its estimated cost.
            name: of the queue, as its client knows it.

        Raises:
            Conflict: the number belongs to a call of another operation.
            TooMuch: the tenant has too many calls waiting.
            Busy: all tenants together have.
        """
        content = json_parts.dumps({"arguments": arguments, "refused": error})
        row: dict[str, Any] = {
            "id": secrets.token_hex(16),
            "tenant": tenant,
            "queue": queue,
            "operation": operation,
            "face": face,
            "batch": batch,
            "state": QUEUED,
            "created": now(),
            "key": key or None,
            "tokens": tokens,
            "memory": memory,
            "name": name if name and name != queue else None,
        }
        row["arguments"] = self._values.seal(content, str(row["id"]), "arguments")
        with self._records.write() as connection:
            if seq is not None:
                known = connection.execute(select(calls).where(calls.c.queue == queue, calls.c.seq == seq)).first()
                if known is not None:
                    if known.operation != operation or known.tenant != tenant:
                        raise Conflict(
                            f"call {seq} is a {known.operation}, no {operation}", action=f"count on from {seq}"
                        )
                    return self._call(known)
            done = _done_with(connection, queue)
            if seq is not None and seq <= done:
                return self._expired_call(tenant, queue, seq)
            queued = select(func.count()).select_from(calls).where(calls.c.state == QUEUED)
            waiting = connection.scalar(queued.where(calls.c.tenant == tenant))
            if waiting and waiting >= self._most:
                raise TooMuch(f"{waiting} calls are waiting", action="wait for some of them")
            of_all = connection.scalar(queued)
            if of_all and of_all >= self._most_of_all:
                raise Busy(f"{of_all} calls are waiting, of all clients together", action="try again later")
            if seq is None:
                last = connection.scalar(select(func.max(calls.c.seq)).where(calls.c.queue == queue))
                seq = max(-1 if last is None else last, done) + 1
            connection.execute(insert(calls).values({**row, "seq": seq}))
        return Call(str(row["id"]), tenant, name or queue, seq, operation, QUEUED)

    # --- work ---------------------------------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        """Models with waiting calls, in order of arrival."""
        with self._records.read() as connection:
            rows = connection.execute(
                select(calls.c.queue, func.min(calls.c.created))
                .where(calls.c.state == QUEUED, calls.c.batch.is_(None))
                .group_by(calls.c.queue)
                .order_by(func.min(calls.c.created))
            )
            return [row.queue for row in rows]

    def next_of(self, queue: str) -> Due | None:
        """The next call of a model's queue; None while its number is missing. For a closed model, missing numbers are
        skipped."""
        with self._records.read() as connection:
            row = connection.execute(due_in(executable(), queue)).first()
        return None if row is None else self._due_call(row)

    def peek(self, queue: str) -> tuple[str, int] | None:
        """Tenant and memory of the next call of a model's queue, without its contents."""
        with self._records.read() as connection:
            row = connection.execute(due_in(select(calls.c.tenant, calls.c.memory), queue)).first()
        return None if row is None else (row.tenant, row.memory or 0)

    def oldest_waiting(self, besides: Collection[str]) -> dict[str, float]:
        """Arrival of the oldest sampling call, by batch.

        Args:
            besides: running calls.
        """
        with self._records.read() as connection:
            rows = connection.execute(
                select(calls.c.batch, func.min(calls.c.created))
                .where(*waiting_besides(besides))
                .group_by(calls.c.batch)
            )
            return {row[0]: row[1] for row in rows}

    def waiting_in(self, batch: str, besides: Collection[str], *, before: float, most: int) -> Sequence[Due]:
        """Sampling calls of a batch that came before a time: tenants in turn, each one's in order of arrival."""
        came = func.row_number().over(partition_by=calls.c.tenant, order_by=calls.c.created)
        chosen = (
            select(calls.c.id, came.label("place"))
            .where(*waiting_besides(besides), calls.c.batch == batch, calls.c.created <= before)
            .order_by("place", calls.c.created)
            .limit(most)
            .subquery()
        )
        with self._records.read() as connection:
            rows = connection.execute(
                executable().join(chosen, chosen.c.id == calls.c.id).order_by(chosen.c.place, calls.c.created)
            )
            return [self._due_call(row) for row in rows]

    def between(self, queue: str, first: int, last: int) -> Sequence[Due]:
        """Calls of a queue in order, both ends included, for a replay."""
        with self._records.read() as connection:
            rows = connection.execute(
                select(calls)
                .where(calls.c.queue == queue, calls.c.seq >= first, calls.c.seq <= last)
                .order_by(calls.c.seq)
            )
            return [self._due_call(row) for row in rows]

    @until_room
    def begin(self, due: Sequence[Due]) -> None:
        """Note that the execution of calls begins; without a later result, the server ended."""
        with self._records.write() as connection:
            chosen = update(calls).where(calls.c.id.in_([call.id for call in due]))
            connection.execute(chosen.values(begun=func.coalesce(calls.c.begun, 0) + 1))

    def suspects(self) -> list[Due]:
        """Calls that ran when a server ended and may be executed again, in order of arrival."""
        begun = executable().where(calls.c.state == QUEUED, calls.c.begun > 0)
        with self._records.read() as connection:
            rows = connection.execute(begun.order_by(calls.c.created))
            return [call for row in rows if not (call := self._due_call(row)).hopeless]

    @until_room
    def isolate(self, call: Due, alone: bool) -> None:
        """Mark whether the call must run alone next time."""
        with self._records.write() as connection:
            connection.execute(update(calls).where(calls.c.id == call.id).values(alone=alone * (call.begun + 1)))

    @until_room
    def leave(self, due: Sequence[Due]) -> None:
        """Note that calls are left to the next server on purpose: they count as not begun."""
        with self._records.write() as connection:
            chosen = update(calls).where(calls.c.id.in_([call.id for call in due]), calls.c.state == QUEUED)
            connection.execute(chosen.values(begun=func.coalesce(calls.c.begun, 1) - 1))

    @until_room
    def finish(
        self, call: Due, result: Any, *, error: str = "", category: Category = "", traceless: bool = False, **marks: int
    ) -> None:
        """Record a result, in one transaction with its effect on the model. A call finishes once.

        Args:
            traceless: it failed without execution, or was undone: a replay skips it.
            marks: columns of the model: `applied`, `stepped`, `snapshot`.
        """
        ending = self._ending(call, result, error, category)
        with self._records.write() as connection:
            if traceless:
                connection.execute(update(calls).where(calls.c.id == call.id).values(begun=0))
            if _finish(connection, call, ending) and marks:
                connection.execute(update(models).where(models.c.id == call.queue).values(**marks))
        self._bells.ring(call.id)

    @until_room
    def finish_all(self, ended: Sequence[tuple[Due, Any]]) -> None:
        """`finish` for sampling calls and their results, in one transaction."""
        endings = [(call, self._ending(call, result, "", "")) for call, result in ended]
        with self._records.write() as connection:
            for call, ending in endings:
                _finish(connection, call, ending)
        for call, _ in ended:
            self._bells.ring(call.id)

    def _ending(self, call: Due, result: Any, error: str, category: Category) -> dict[str, Any]:
        """The record of a call's end; made before locking the database."""
        text = None
        if not error:
            try:
                text = self._values.seal(json_parts.dumps(result, allow_nan=False), call.id, "result")
            except ValueError:
                error, category = f"{call.operation}: the result holds a number that is not finite", "server"
        return {
            "state": FAILED if error else DONE,
            "result": text,
            "error": error.replace("\x00", "\\0") or None,
            "category": category or None,
            "finished": now(),
        }

    @until_room
    def forget(self, queue: str, before: int) -> None:
        """Drop the arguments of calls that no replay needs any more; results stay."""
        with self._records.write() as connection:
            connection.execute(
                update(calls)
                .where(calls.c.queue == queue, calls.c.seq < before, calls.c.state != QUEUED)
                .values(arguments=None)
            )

    def waiting(self) -> list[Waiting]:
        """Waiting calls, oldest first, without their contents."""
        with self._records.read() as connection:
            rows = connection.execute(
                executable().where(calls.c.state == QUEUED).order_by(calls.c.created, calls.c.queue, calls.c.seq)
            )
            return [
                Waiting(
                    row.id, row.tenant, row.queue, row.seq, row.operation, row.created, row.begun or 0,
                    bool(row.dropped), len(row.arguments or b""),
                )
                for row in rows
            ]  # fmt: skip

    def counted_lately(self) -> int | None:
        """The number of waiting calls, if counted in the last half second; never reads the database."""
        return self._counted[1] if now() - self._counted[0] < COUNTED else None

    def count_waiting(self) -> int:
        """The number of waiting calls, cached for half a second because clients poll it."""
        if self.counted_lately() is None:
            with self._records.read() as connection:
                count = connection.scalar(select(func.count()).select_from(calls).where(calls.c.state == QUEUED))
            self._counted = now(), count or 0
        return self._counted[1]

    def give_up_gaps(self, before: float) -> list[str]:
        """Fail calls that wait for a missing number, if the oldest of them came before a time.

        Returns:
            ids of these calls.
        """
        with self._records.write() as connection:
            first, oldest = func.min(calls.c.seq).label("first"), func.min(calls.c.created)
            stuck = connection.execute(
                select(calls.c.queue, models.c.applied, first, func.max(calls.c.seq).label("last"))
                .join(models, models.c.id == calls.c.queue)
                .where(calls.c.state == QUEUED, models.c.closed.is_(False))
                .group_by(calls.c.queue, models.c.applied)
                .having(first > models.c.applied + 1, oldest < before)
            ).all()
            ids: list[str] = []
            for row in stuck:
                missing = str(row.applied + 1) + (f" to {row.first - 1}" if row.first - 1 > row.applied + 1 else "")
                chosen = (calls.c.queue == row.queue) & (calls.c.state == QUEUED)
                waiting = list(connection.scalars(select(calls.c.id).where(chosen)))
                error = f"it waited for call {missing}, which did not come (send calls without a gap)"
                given_up = {"state": FAILED, "error": error, "category": "user", "finished": now(), "begun": 0}
                connection.execute(update(calls).where(chosen).values(given_up))
                connection.execute(update(models).where(models.c.id == row.queue).values(applied=row.last))
                ids += waiting
        for id_ in ids:
            self._bells.ring(id_)
        return ids

    def drop(self, id_: str) -> None:
        """Make a waiting call fail when its turn comes.

        Raises:
            Unknown: no call of this id waits.
        """
        with self._records.write() as connection:
            chosen = update(calls).where(calls.c.id == id_, calls.c.state == QUEUED)
            if not connection.execute(chosen.values(dropped=True)).rowcount:
                raise Unknown(f"no call {id_!r} waits", action="see `ft calls list`")

    def cancel(self, caller: Caller, id_: str) -> Call:
        """Make a caller's unfinished call fail; return the call's current state.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        call = self.fetch(caller, id_)
        if call.state == QUEUED:
            with self._records.write() as connection:
                chosen = update(calls).where(calls.c.id == id_, calls.c.state == QUEUED)
                connection.execute(chosen.values(cancelled=True))
        return call

    def cancel_queues(self, queues: Sequence[str]) -> list[str]:
        """Fail all unfinished calls of queues; return their ids."""
        chosen = (calls.c.queue.in_(queues)) & (calls.c.state == QUEUED)
        with self._records.write() as connection:
            ids = list(connection.scalars(select(calls.c.id).where(chosen)))
            connection.execute(update(calls).where(chosen).values(cancelled=True))
        return ids

    # --- out ----------------------------------------------------------------------------------------------------------

    def fetch(self, caller: Caller, id_: str) -> Call:
        """A call of the caller's.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        with self._records.read() as connection:
            row = connection.execute(select(calls).where(calls.c.id == id_)).first()
            if row is None and (named := _GONE.fullmatch(id_)):
                seq, queue = int(named["seq"]), named["queue"]
                if seq <= _done_with(connection, queue, caller.tenant):
                    return self._expired_call(caller.tenant, queue, seq)
        if row is None or row.tenant != caller.tenant:
            raise Unknown(
                f"no call {id_!r}",
                action=f"use the id that the call was answered with; results are kept for {self._hours()}",
            )
        if row.state != QUEUED and row.delivered is None:
            with self._lock:
                self._delivered.add(row.id)
        return self._call(row)

    async def wait(self, caller: Caller, id_: str, seconds: float) -> Call:
        """A call of the caller's, once it has finished or the time is over.

        Raises:
            Unknown: there is none, or it is another tenant's.
        """
        with self._bells.bell(id_) as finished:
            call = await asyncio.to_thread(self.fetch, caller, id_)
            if call.state == QUEUED and seconds > 0:
                try:
                    await asyncio.wait_for(finished.wait(), seconds)
                except TimeoutError:
                    return call
                call = await asyncio.to_thread(self.fetch, caller, id_)
            return call

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _call(self, row: Row[Any]) -> Call:
        result = self._values.open(row.result, row.id, "result")
        return Call(
            row.id,
            row.tenant,
            row.name or row.queue,
            row.seq,
            row.operation,
            row.state,
            None if result is None else bytes(result),
            row.error or "",
            row.category or "",
        )

    def _due_call(self, row: Row[Any]) -> Due:
        arguments = self._values.open(row.arguments, row.id, "arguments")
        about = row._mapping
        return Due(
            row.id,
            row.tenant,
            row.queue,
            row.seq,
            row.operation,
            row.batch,
            row.state,
            arguments,
            row.begun or 0,
            bool(row.dropped),
            bool(row.cancelled),
            about.get("key_revoked") is not None,
            row.tokens or 0,
            row.memory or 0,
            row.alone or 0,
        )

    # --- what is no longer kept ---------------------------------------------------------------------------------------

    def taken_delivered(self) -> list[str]:
        """Ids of calls whose results were delivered since the last request for them."""
        with self._lock:
            delivered, self._delivered = list(self._delivered), set()
        return delivered

    def _expired_call(self, tenant: str, queue: str, seq: int) -> Call:
        error = (
            f"call {seq} was done, and its result is kept for {self._hours()} only, or it came too late for those that "
            "waited for it (count on from the last call)"
        )
        return Call(f"gone-{seq}-{queue}", tenant, queue, seq, "", FAILED, error=error, category="user")

    def _hours(self) -> str:
        return f"{self._kept / 3600:g} hours after it was delivered"


_GONE = re.compile(r"gone-(?P<seq>[0-9]{1,18})-(?P<queue>.+)")


def _done_with(connection: Connection, queue: str, tenant: str | None = None) -> int:
    """The number of a queue's last finished call; those missing in the log were removed. -1 before the first one, and
    for another tenant's queue if a tenant is given."""
    if queue.startswith("sampler:"):
        table, mark, id_ = samplers, samplers.c.pruned, queue.removeprefix("sampler:")
    else:
        table, mark, id_ = models, models.c.applied, queue
    row = connection.execute(select(mark.label("mark"), table.c.tenant).where(table.c.id == id_)).first()
    if row is None or row.mark is None or tenant not in (None, row.tenant):
        return -1
    return int(row.mark)


def _finish(connection: Connection, call: Due, ending: Mapping[str, Any]) -> bool:
    """Whether the call had not been finished before."""
    done = connection.execute(update(calls).where(calls.c.id == call.id, calls.c.state == QUEUED).values(ending))
    return bool(done.rowcount)
