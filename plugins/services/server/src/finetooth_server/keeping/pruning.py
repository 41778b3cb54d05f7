"""Removes old records, so that a server's database and folder do not grow without bound.

A result is removed some time after its client fetched it, or much later if no client came. A call that a replay may
need stays. The numbers of removed calls stay known (`Log.submit`), so nothing is executed twice. The latest ended
sessions of each tenant stay, with their models and samplers, and every model with a checkpoint.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    true,
    update,
)

from finetooth_server.faults import DiskFull, TooMuch
from finetooth_server.keeping.records import QUEUED, Records, calls, checkpoints, models, now, samplers, sessions
from finetooth_server.log import Log
from finetooth_server.settings import Limits

LOGGER = logging.getLogger("finetooth.server")

EVERY = 60.0
"""Seconds between two runs."""

PORTION = 1000
"""Most calls removed in one transaction, so that others do not wait long."""


def end_sessions(records: Records, ids: Sequence[str]) -> list[str]:
    """Close sessions and their models.

    Returns:
        the queues of their models and samplers, whose calls can be cancelled.
    """
    with records.write() as connection:
        mine = models.c.session.in_(ids) & models.c.closed.is_(False)
        queues = list(connection.scalars(select(models.c.id).where(mine)))
        sampler_ids = connection.scalars(select(samplers.c.id).where(samplers.c.session.in_(ids)))
        queues += [f"sampler:{id_}" for id_ in sampler_ids]
        connection.execute(update(sessions).where(sessions.c.id.in_(ids)).values(closed=True))
        connection.execute(update(models).where(models.c.session.in_(ids)).values(closed=True))
    return queues


SAMPLERS = 16
"""Remembered samplers of a tenant per remembered session."""


def forget_ended(records: Records, most: int) -> int:
    """Remove each tenant's ended sessions with their models and samplers, closed models, and samplers, except the most
    recently used. A model with calls or checkpoints stays, and a sampler with calls, with its session.

    Args:
        most: remembered ended sessions per tenant.

    Returns:
        the largest of the numbers of removed sessions, models and samplers.
    """
    called = exists().where(calls.c.queue == models.c.id)
    saved = exists().where(checkpoints.c.model == models.c.id)
    sampled = exists().where(calls.c.queue == "sampler:" + samplers.c.id)
    trained = select(models.c.session).where(or_(models.c.closed.is_(False), called, saved))
    needed = trained.union(select(samplers.c.session).where(sampled))
    ended = _older(sessions, sessions.c.seen, sessions.c.closed.is_(True), most)
    closed = _older(models, models.c.created, models.c.closed.is_(True), most)
    unused = _older(samplers, samplers.c.created, true(), SAMPLERS * most)
    chosen = [
        (sessions, sessions.c.id.in_(ended) & sessions.c.id.not_in(needed)),
        (models, models.c.id.in_(closed) & ~called & ~saved),
        (samplers, samplers.c.id.in_(unused) & ~sampled),
    ]
    counts = []
    with records.write() as connection:
        for table, which in chosen:
            ids = list(connection.scalars(select(table.c.id).where(which).limit(PORTION)))
            if ids and table is sessions:
                for inside in (models, samplers):
                    connection.execute(delete(inside).where(inside.c.session.in_(ids)))
            if ids:
                connection.execute(delete(table).where(table.c.id.in_(ids)))
            counts.append(len(ids))
    return max(counts)


def _older(table: Table, by: Column[float], which: ColumnElement[bool], most: int) -> Select[tuple[str]]:
    """Ids of each tenant's rows, without its latest."""
    rank = func.row_number().over(partition_by=table.c.tenant, order_by=(by.desc(), table.c.id)).label("rank")
    ranked = select(table.c.id, rank).where(which).subquery()
    return select(ranked.c.id).where(ranked.c.rank > most)


def make_place(connection: Connection, tenant: str, most: int) -> None:
    """Make room for one more session of a tenant. If there are too many, remove the least recently used without
    heartbeats and without an open model; samplers of its saved weights stay usable.

    Raises:
        TooMuch: all of them are active.
    """
    mine = (sessions.c.tenant == tenant) & sessions.c.closed.is_(False)
    count = connection.scalar(select(func.count()).select_from(sessions).where(mine)) or 0
    if count < most:
        return
    at_work = select(models.c.session).where(models.c.tenant == tenant, models.c.closed.is_(False))
    idle = mine & sessions.c.heartbeat.is_not(True) & sessions.c.id.not_in(at_work)
    oldest = connection.scalar(select(sessions.c.id).where(idle).order_by(sessions.c.seen).limit(1))
    if oldest is None:
        raise TooMuch(f"{count} sessions are at work", action="finish one")
    connection.execute(update(sessions).where(sessions.c.id == oldest).values(closed=True))


class Pruner:
    """Removes old calls, in a separate thread.

    Args:
        also: called in every run.
        ended: called with the queues of ended sessions.
    """

    def __init__(
        self,
        records: Records,
        log: Log,
        limits: Limits,
        also: Callable[[], None] = lambda: None,
        ended: Callable[[Sequence[str]], None] = lambda queues: None,
    ) -> None:
        self._records, self._log, self._limits, self._also, self._ended = records, log, limits, also, ended
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="finetooth-pruner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current run."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(60)
        with suppress(DiskFull):  # left to the next server
            self.mark_delivered()
            self._also()

    def prune(self) -> int:
        """Remove old calls; return their number."""
        self.mark_delivered()
        self.end_silent()
        self.end_idle()
        self._log.give_up_gaps(now() - self._limits.gap)
        self._also()
        total = 0
        while not self._ending.is_set():
            count = self._portion()
            total += count
            if count < PORTION:
                break
        while not self._ending.is_set() and forget_ended(self._records, self._limits.history) == PORTION:
            pass
        return total

    def end_silent(self, tenant: str = "", seconds: float | None = None) -> None:
        """End sessions whose client stopped its heartbeats.

        Args:
            tenant: of the sessions; empty: all.
            seconds: since the last heartbeat; default: the server's setting.
        """
        silent: ColumnElement[bool] = sessions.c.heartbeat.is_(True)
        if tenant:
            silent &= sessions.c.tenant == tenant
        self._end(silent, self._limits.silent if seconds is None else seconds)

    def end_idle(self) -> None:
        """End sessions of clients without heartbeats and without recent calls; a client that waits for calls is
        active."""
        waited = select(models.c.session).join(calls, calls.c.queue == models.c.id).where(calls.c.state == QUEUED)
        self._end(sessions.c.heartbeat.is_not(True) & sessions.c.id.not_in(waited), self._limits.idle)

    def _end(self, which: ColumnElement[bool], seconds: float) -> None:
        """End sessions that were not used for so long."""
        with self._records.read() as connection:
            open_ = sessions.c.closed.is_(False) & (sessions.c.seen < now() - seconds)
            ids = list(connection.scalars(select(sessions.c.id).where(which, open_).limit(PORTION)))
        if ids:
            self._ended(end_sessions(self._records, ids))

    def mark_delivered(self) -> None:
        """Record delivered results. After a crash before this, the longer limit applies to them."""
        ids = self._log.taken_delivered()
        for first in range(0, len(ids), PORTION):
            with self._records.write() as connection:
                some = calls.c.id.in_(ids[first : first + PORTION])
                connection.execute(update(calls).where(some).values(delivered=now()))

    def _portion(self) -> int:
        old = and_(
            calls.c.state != QUEUED,
            or_(
                calls.c.delivered < now() - self._limits.results,
                calls.c.finished < now() - self._limits.undelivered,
            ),
        )
        needless = or_(models.c.closed, calls.c.seq < models.c.replay)
        trained = select(calls.c.id).join(models, models.c.id == calls.c.queue).where(old, needless).limit(PORTION)
        sampled = select(calls.c.id, calls.c.queue, calls.c.seq).where(old, calls.c.queue.like("sampler:%"))
        with self._records.write() as connection:
            ids = list(connection.scalars(trained))
            rows = connection.execute(sampled.limit(PORTION - len(ids))).all()
            marks: dict[str, int] = {}
            for row in rows:
                marks[row.queue] = max(marks.get(row.queue, -1), row.seq)
            for queue, mark in marks.items():
                later = func.coalesce(samplers.c.pruned, -1) < mark
                same = samplers.c.id == queue.removeprefix("sampler:")
                connection.execute(update(samplers).where(same, later).values(pruned=mark))
            ids += [row.id for row in rows]
            if ids:
                connection.execute(delete(calls).where(calls.c.id.in_(ids)))
        return len(ids)

    def _work(self) -> None:
        while True:
            try:
                self.prune()
            except DiskFull:
                pass  # requests report it; retry at the next run
            except Exception as error:  # the next run may succeed; calls are served meanwhile
                LOGGER.error("old calls could not be removed", exc_info=error)
            if self._ending.wait(EVERY):
                return
