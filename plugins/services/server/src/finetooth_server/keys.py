"""API keys: shown once, kept as a hash.

    ft_ID_SECRET        the secret has 256 random bits, so a plain SHA-256 cannot be searched backwards

A client of the Tinker wire insists on a key that starts with `tml-`; there the same key is written `tml-ft_ID_SECRET`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import UserError
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from finetooth_server.audit import Audit
from finetooth_server.faults import Forbidden, Unauthorised
from finetooth_server.keeping.records import Records, key_events, keys, now

SCOPES = ("train", "sample", "read", "download", "admin")
"""`train`: create, train and delete models; `sample`: from existing weights; `read`: list things; `download`: fetch
weights; `admin`: everything."""

USUAL = ("train", "sample", "read")
"""Default scopes of a key: weights stay at the server."""

MOST_DAYS = 36500
"""Most days of a key."""

LOCAL = "local"
"""Tenant of a server without keys."""

LISTED = 1.0
"""Seconds for which the list of ids is cached."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """The caller of a request.

    Attributes:
        tenant: of the visible sessions, models and checkpoints.
        key: id of the key; empty without one.
        scopes: of the key.
    """

    tenant: str
    key: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the key has the scope."""
        return scope in self.scopes or "admin" in self.scopes

    def must(self, *scopes: str) -> None:
        """Checks that the key has one of these scopes.

        Raises:
            Forbidden: the key has none of these scopes.
        """
        if not any(self.may(scope) for scope in scopes):
            raise Forbidden(f"the key lacks the scope {' or '.join(scopes)}", action="use another key")


@dataclass(frozen=True)
class KeyInfo:
    """A key, without its secret.

    Attributes:
        expires, revoked: seconds since 1970; None is never.
    """

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None
    revoked: float | None


def check_wishes(tenant: str, scopes: Sequence[str], *, name: str = "", days: float | None = None) -> None:
    """Check the settings of a new key, before the server's folder exists.

    Raises:
        UserError: an invalid name, scope or time.
    """
    if not _NAME.fullmatch(tenant):
        raise UserError(f"tenant {tenant!r}", action="use letters, digits, '.', '_' and '-'")
    for scope in scopes:
        if scope not in SCOPES:
            raise UserError(f"unknown scope {scope!r}", action=f"choose among {', '.join(SCOPES)}")
    if days is not None and not 0 < days < MOST_DAYS:
        raise UserError(f"days is {days:g}", action=f"choose more than 0 and less than {MOST_DAYS}")
    if len(name) > 128:
        raise UserError(f"a note of {len(name)} letters", action="write at most 128")
    if not scopes:
        raise UserError("a key without scopes may do nothing", action=f"choose among {', '.join(SCOPES)}")


class Keys:
    """The keys of a server."""

    def __init__(self, records: Records, clock: Callable[[], float] = time.monotonic) -> None:
        self._records, self._clock = records, clock
        self._ids: frozenset[str] = frozenset()
        self._listed = -LISTED

    def create(
        self,
        tenant: str,
        scopes: Sequence[str] = USUAL,
        *,
        name: str = "",
        days: float | None = None,
    ) -> str:
        """A new key; this is the only time that it is shown.

        Raises:
            UserError: an invalid name or scope.
        """
        check_wishes(tenant, scopes, name=name, days=days)
        id_, secret = secrets.token_hex(6), secrets.token_hex(32)
        row = {
            "id": id_,
            "tenant": tenant,
            "name": name,
            "digest": _digest(secret),
            "scopes": ",".join(sorted(set(scopes))),
            "created": now(),
            "expires": None if days is None else now() + days * 86400,
            "lasts": 0.0 if days is None else days * 86400,
        }
        with self._records.write() as connection:
            connection.execute(insert(keys).values(row))
            _note(connection, "key created", tenant, id_)
        return f"ft_{id_}_{secret}"

    def rotate(self, id_: str, *, grace_hours: float = 24.0) -> str:
        """A new key with the same rights and lifetime; the old one ends after `grace_hours`.

        Raises:
            UserError: no valid key has this id.
        """
        old = next((key for key in self.list() if key.id == id_), None)
        if old is None or not _valid(old):
            raise UserError(f"no valid key {id_!r}", action="see `ft keys list`")
        with self._records.read() as connection:
            lasts = connection.scalar(select(keys.c.lasts).where(keys.c.id == id_))
        if lasts is None:  # a key from before lifetimes were stored
            lasts = 0.0 if old.expires is None else old.expires - old.created
        days = lasts / 86400 or None
        new = self.create(old.tenant, old.scopes, name=old.name, days=days)
        end = now() + grace_hours * 3600
        with self._records.write() as connection:
            end = end if old.expires is None else min(end, old.expires)
            connection.execute(update(keys).where(keys.c.id == id_).values(expires=end))
            _note(connection, "key rotated", old.tenant, id_)
        return new

    def revoke(self, id_: str) -> None:
        """End a key now.

        Raises:
            UserError: there is none of this id.
        """
        with self._records.write() as connection:
            done = connection.execute(update(keys).where(keys.c.id == id_).values(revoked=now()))
            tenant = connection.scalar(select(keys.c.tenant).where(keys.c.id == id_))
            if done.rowcount:
                _note(connection, "key revoked", str(tenant), id_)
        if not done.rowcount:
            raise UserError(f"no key {id_!r}", action="see `ft keys list`")

    def record(self, audit: Audit) -> None:
        """Write changes of keys into the audit record, which only the server writes, once there is room."""
        if audit.behind:
            return
        with self._records.write() as connection:
            rows = connection.execute(select(key_events).order_by(key_events.c.id)).all()
            for row in rows:
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row.at))
                audit.add(row.event, tenant=row.tenant, key=row.key, outcome=f"at {at}")
                connection.execute(delete(key_events).where(key_events.c.id == row.id))

    def list(self) -> list[KeyInfo]:
        """All keys, oldest first."""
        with self._records.read() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created)).all()
        return [_info(row) for row in rows]

    def exist(self) -> bool:
        """Whether any key was ever made."""
        with self._records.read() as connection:
            return bool(connection.scalar(select(func.count()).select_from(keys)))

    def caller(self, key: str | None, *, keyless: bool) -> Caller:
        """The caller with this key.

        Args:
            key: of the request; None without one.
            keyless: requests without a key belong to the tenant `local` while no key exists.

        Raises:
            Unauthorised: no valid key; the message does not say why.
        """
        parts = (key or "").removeprefix("tml-").split("_")
        if len(parts) == 3 and parts[0] == "ft":
            with self._records.read() as connection:
                row = connection.execute(select(keys).where(keys.c.id == parts[1])).first()
            digest = _digest(parts[2])
            if hmac.compare_digest(digest, row.digest if row else "0" * 64) and row and _valid(_info(row)):
                return Caller(row.tenant, row.id, frozenset(row.scopes.split(",")))
        elif keyless and not self.exist():
            return Caller(LOCAL, "", frozenset({*USUAL, "download"}))
        raise Unauthorised("no valid API key", action="send one that `ft keys create` made")

    def named_by(self, key: str) -> str:
        """The id in a key, if it exists, even if the key is wrong; else empty. It reads the database at most once a
        second, so invented keys cost little."""
        if self._clock() - self._listed >= LISTED:
            with self._records.read() as connection:
                self._ids = frozenset(connection.scalars(select(keys.c.id)))
            self._listed = self._clock()
        id_ = key.removeprefix("tml-").removeprefix("ft_").partition("_")[0]
        return id_ if id_ in self._ids else ""

    def holds(self, id_: str, *, keyless: bool) -> bool:
        """Whether a key is still valid.

        Args:
            id_: of the key; empty for a request without one.
            keyless: such requests are accepted while no key exists.
        """
        if not id_:
            return keyless and not self.exist()
        with self._records.read() as connection:
            row = connection.execute(select(keys).where(keys.c.id == id_)).first()
        return row is not None and _valid(_info(row))


def _note(connection: Connection, event: str, tenant: str, key: str) -> None:
    connection.execute(insert(key_events).values(event=event, tenant=tenant, key=key, at=now()))


def _info(row: Row[Any]) -> KeyInfo:
    scopes = tuple(row.scopes.split(","))
    return KeyInfo(row.id, row.tenant, row.name, scopes, row.created, row.expires, row.revoked)


def _valid(row: KeyInfo) -> bool:
    return row.revoked is None and (row.expires is None or row.expires > now())


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
