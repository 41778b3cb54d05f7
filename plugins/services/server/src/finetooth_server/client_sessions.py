"""Sessions of clients: opened, and kept while their client is there."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from finetooth_hooks import CommandContext
from sqlalchemy import Connection, Table, func, insert, select, update

from finetooth_server.bases import Bases
from finetooth_server.faults import Unknown
from finetooth_server.keeping.pruning import Pruner, make_place
from finetooth_server.keeping.records import Records, now, sessions
from finetooth_server.keys import Caller
from finetooth_server.sections import described
from finetooth_server.settings import Settings

LONGEST_NAME = 200
"""Letters of a session's name."""

NOTED = 60.0
"""Seconds for which a session's use need not be written down again."""

BEATS = 15.0
"""Seconds for which a session's heartbeat need not be written down again, where sessions may be silent for a minute."""


class ClientSessions(Bases):
    """The part of the service that knows who is there."""

    records: Records
    pruner: Pruner

    def __init__(self, context: CommandContext, settings: Settings) -> None:
        super().__init__(context, settings)
        self._used: dict[str, float] = {}  # the latest stands last
        self._beats: dict[tuple[str, str], float] = {}  # by tenant and session, the latest stands last
        self._beat_every = min(BEATS, settings.limits.silent / 4, settings.limits.left / 4)

    def open_session(
        self,
        caller: Caller,
        about: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        id_: str | None = None,
        heartbeat: bool = False,
    ) -> str:
        """A new session's id.

        Args:
            about: notes of its client.
            name: for people.
            id_: that it is to have, not to be guessed by others; the same again is the same session.
            heartbeat: its client will say again and again that it is there: once it stops, its models are closed.

        Raises:
            TooMuch: the tenant has as many sessions at work as it may.
        """
        caller.must("train", "sample")
        known = id_ is not None and self._has_session(caller, id_)
        id_ = id_ or secrets.token_hex(16)
        if known:
            return id_
        row = {"id": id_, "tenant": caller.tenant, "created": now(), "seen": now(), "about": described(about)}
        row["name"] = name[:LONGEST_NAME]
        self._make_room(caller, sessions, self.settings.limits.sessions)
        with self.records.write() as connection:
            make_place(connection, caller.tenant, self.settings.limits.sessions)
            connection.execute(insert(sessions).values({**row, "closed": False, "heartbeat": heartbeat or None}))
        return id_

    def _make_room(self, caller: Caller, table: Table, most: int) -> None:
        """Where a tenant has as many of these as it may, those of clients go that went away without a word."""
        with self.records.read() as connection:
            full = count_of_open(connection, table, caller.tenant) >= most
        if full:
            self.pruner.end_silent(caller.tenant, self.settings.limits.left)

    def _has_session(self, caller: Caller, id_: str) -> bool:
        mine = (sessions.c.id == id_) & (sessions.c.tenant == caller.tenant)
        with self.records.read() as connection:
            return connection.execute(select(sessions.c.id).where(mine)).first() is not None

    def has_ended(self, caller: Caller, session: str) -> bool:
        """Whether a session of the caller's was closed."""
        mine = (sessions.c.id == session) & (sessions.c.tenant == caller.tenant) & sessions.c.closed.is_(True)
        with self.records.read() as connection:
            return connection.execute(select(sessions.c.id).where(mine)).first() is not None

    def note_contact(self, caller: Caller, session: str, *, heartbeat: bool = False) -> None:
        """The session's client is there. Of heartbeats one in `BEATS` seconds is written down.

        Args:
            heartbeat: it says so by itself, again and again: once it stops, its models are closed.

        Raises:
            Unknown: there is none, it has ended, or it is another tenant's.
        """
        caller.must("train", "sample")
        moment = now()
        if heartbeat and moment - self._beats.get((caller.tenant, session), -BEATS) < self._beat_every:
            return
        values: dict[str, Any] = {"seen": moment, **({"heartbeat": True} if heartbeat else {})}
        with self.records.write() as connection:
            mine = (sessions.c.id == session) & (sessions.c.tenant == caller.tenant) & sessions.c.closed.is_(False)
            if not connection.execute(update(sessions).where(mine).values(values)).rowcount:
                raise Unknown(f"no session {session!r}", action="make one")
        if heartbeat:
            for name, seen in list(self._beats.items()):
                if moment - seen < self._beat_every:
                    break
                self._beats.pop(name, None)
            self._beats.pop((caller.tenant, session), None)
            self._beats[caller.tenant, session] = moment

    def forget_contact(self, session: str) -> None:
        """The session was closed: its next heartbeat is told so."""
        for name in [name for name in list(self._beats) if name[1] == session]:
            self._beats.pop(name, None)

    def note_use(self, session: str) -> None:
        """A call was made on a model or a sampler of a session. It is written down once a minute at most."""
        moment = now()
        if moment - self._used.get(session, -NOTED) < NOTED:
            return
        self._used[session] = moment
        for old in [name for name, seen in list(self._used.items()) if moment - seen >= NOTED]:
            self._used.pop(old, None)
        with self.records.write() as connection:
            connection.execute(update(sessions).where(sessions.c.id == session).values(seen=moment))


def count_of_open(connection: Connection, table: Table, tenant: str) -> int:
    """How many sessions or models of a tenant are open."""
    mine = (table.c.tenant == tenant) & table.c.closed.is_(False)
    return connection.scalar(select(func.count()).select_from(table).where(mine)) or 0
