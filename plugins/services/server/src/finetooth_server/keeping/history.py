"""Lists of a tenant's sessions and models, including ended ones, newest first, in pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import UserError
from sqlalchemy import ColumnElement, Table, and_, func, or_, select

from finetooth_server.faults import Unknown
from finetooth_server.keeping.records import Records, models, samplers, sessions
from finetooth_server.keys import Caller
from finetooth_server.model_info import ModelInfo, model_info, select_models

MOST = 1000
"""Most entries per page."""

SCANNED = 500
"""Sessions per query in a search by metadata."""

READERS = ("read", "train", "sample")


@dataclass(frozen=True)
class Page:
    """The requested part of a list.

    Raises:
        UserError: no such part.
    """

    offset: int = 0
    limit: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MOST:
            raise UserError(f"limit is {self.limit}", action=f"choose 1 to {MOST}")
        if not 0 <= self.offset < 2**31:
            raise UserError(f"offset is {self.offset}", action="begin with 0")


@dataclass(frozen=True)
class SessionRecord:
    """A client's session.

    Attributes:
        name: for people.
        finish: its client's word on its end; None: no word.
    """

    id: str
    created: float
    closed: bool
    name: str
    about: Mapping[str, Any]
    finish: Mapping[str, Any] | None


class History:
    """A tenant's history."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def runs(self, caller: Caller, page: Page) -> tuple[list[ModelInfo], int]:
        """Models, newest first, and their total number.

        Raises:
            Forbidden: the key may not look.
        """
        caller.must(*READERS)
        mine = models.c.tenant == caller.tenant
        chosen = select_models().where(mine).order_by(models.c.created.desc(), models.c.id)
        with self._records.read() as connection:
            count = connection.scalar(select(func.count()).select_from(models).where(mine)) or 0
            rows = connection.execute(chosen.offset(page.offset).limit(page.limit)).all()
        return [model_info(row) for row in rows], count

    def run(self, caller: Caller, id_: str) -> ModelInfo:
        """A model, also one that has ended.

        Raises:
            Forbidden: the key may not look.
            Unknown: there is none, or it is another tenant's.
        """
        caller.must(*READERS)
        with self._records.read() as connection:
            mine = (models.c.tenant == caller.tenant) & (_known(models) == id_)
            row = connection.execute(select_models().where(mine)).first()
        if row is None:
            raise Unknown(f"no session or model {id_!r}", action="list them, or begin a new one")
        return model_info(row)

    def sessions(self, caller: Caller, page: Page) -> list[SessionRecord]:
        """Sessions, newest first.

        Raises:
            Forbidden: the key may not look.
        """
        caller.must(*READERS)
        chosen = _newest_sessions(sessions.c.tenant == caller.tenant)
        with self._records.read() as connection:
            rows = connection.execute(chosen.offset(page.offset).limit(page.limit)).all()
        return [_session(row) for row in rows]

    def session(self, caller: Caller, id_: str) -> tuple[SessionRecord, list[str], list[str]]:
        """A session, its models' ids and its samplers'.

        Raises:
            Forbidden: the key may not look.
            Unknown: there is none, or it is another tenant's.
        """
        caller.must(*READERS)
        with self._records.read() as connection:
            row = connection.execute(
                select(sessions).where(sessions.c.id == id_, sessions.c.tenant == caller.tenant)
            ).first()
            if row is None:
                raise Unknown(f"no session {id_!r}", action="list the sessions that there are")
            made, opened = (
                list(connection.scalars(select(_known(t)).where(t.c.session == id_).order_by(t.c.created)))
                for t in (models, samplers)
            )
        return _session(row), made, opened

    def search(
        self,
        caller: Caller,
        wanted: Callable[[SessionRecord], bool],
        *,
        id_: str = "",
        words: Sequence[str] = (),
        after: tuple[float, str] | None = None,
        limit: int = 50,
    ) -> list[SessionRecord]:
        """Sessions that fit, newest first.

        Args:
            wanted: an additional condition.
            id_: of a session.
            words: all must occur in the name; with `id_`, either condition is enough.
            after: creation time and id of the previous page's last session.
            limit: of sessions.

        Raises:
            Forbidden: the key may not look.
        """
        caller.must(*READERS)
        conditions: list[ColumnElement[bool]] = []
        if id_:
            conditions.append(sessions.c.id == id_)
        if words:
            name = func.lower(func.coalesce(sessions.c.name, ""))
            conditions.append(and_(*(name.contains(word.lower(), autoescape=True) for word in words)))
        if after is not None:  # its time in the protocol is rounded
            with self._records.read() as connection:
                last = (sessions.c.tenant == caller.tenant) & (sessions.c.id == after[1])
                after = connection.scalar(select(sessions.c.created).where(last)) or after[0], after[1]
        records: list[SessionRecord] = []
        while True:
            fits = [sessions.c.tenant == caller.tenant]
            if conditions:
                fits.append(or_(*conditions))
            if after is not None:
                created, id_before = after
                fits.append(
                    or_(sessions.c.created < created, and_(sessions.c.created == created, sessions.c.id > id_before))
                )
            with self._records.read() as connection:
                rows = connection.execute(_newest_sessions(and_(*fits)).limit(SCANNED)).all()
            for row in rows:
                record = _session(row)
                if wanted(record):
                    records.append(record)
                    if len(records) == limit:
                        return records
            if len(rows) < SCANNED:
                return records
            after = rows[-1].created, rows[-1].id


def _known(table: Table) -> Any:
    """Ids of models or samplers as their clients know them."""
    return func.coalesce(table.c.name, table.c.id)


def _newest_sessions(which: ColumnElement[bool]) -> Any:
    return select(sessions).where(which).order_by(sessions.c.created.desc(), sessions.c.id)


def _session(row: Any) -> SessionRecord:
    finish = json.loads(row.finish) if row.finish else None
    return SessionRecord(row.id, row.created, bool(row.closed), row.name or "", json.loads(row.about), finish)
