"""Sessions of clients: opened, and kept while their client is active."""

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
"""Seconds between two records of a session's use."""

BEATS = 15.0
"""Seconds between two records of a session's heartbeat, if sessions may be silent for a minute."""


class ClientSessions(Bases):
    """The service's part for sessions."""

    records: Records
    pruner: Pruner

    def __init__(self, context: CommandContext, settings: Settings) -> None:
        super().__init__(context, settings)
        self._used: dict[str, float] = {}  # the latest is last
        self._beats: dict[tuple[str, str], float] = {}  # by tenant and session, the latest is last
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
            id_: its id, which others cannot guess; the same id gives the same session.
            heartbeat: its client sends heartbeats: when they stop, its models are closed.

        Raises:
            TooMuch: the tenant has reached its limit of active sessions.
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
        """If a tenant has reached its limit, remove those of clients that disappeared."""
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
        """Note that the session's client is active. One heartbeat per `BEATS` seconds is recorded.

        Args:
            heartbeat: it is a heartbeat: when they stop, its models are closed.

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
        """Note that the session was closed, for its next heartbeat."""
        for name in [name for name in list(self._beats) if name[1] == session]:
            self._beats.pop(name, None)

    def note_use(self, session: str) -> None:
        """Note a call on a model or a sampler of a session; recorded at most once a minute."""
        moment = now()
        if moment - self._used.get(session, -NOTED) < NOTED:
            return
        self._used[session] = moment
        for old in [name for name, seen in list(self._used.items()) if moment - seen >= NOTED]:
            self._used.pop(old, None)
        with self.records.write() as connection:
            connection.execute(update(sessions).where(sessions.c.id == session).values(seen=moment))


def count_of_open(connection: Connection, table: Table, tenant: str) -> int:
    """The number of open sessions or models of a tenant."""
    mine = (table.c.tenant == tenant) & table.c.closed.is_(False)
    return connection.scalar(select(func.count()).select_from(table).where(mine)) or 0
