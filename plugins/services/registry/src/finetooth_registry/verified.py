"""Remembers on this machine which part of a registry's log this user has verified.

Checking a whole log takes long, and an attacker who can change it can also rebuild its chain. So the user's state
folder keeps the place of the last verified event, with a digest of each model's events up to it. Later checks begin
there, and compare earlier events with the digest of their model: a check uses only verified events.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.own_python import state_folder

if TYPE_CHECKING:
    from finetooth_registry.anywhere import Event

NOTHING = (0, "0" * 64)
"""Number and SHA-256 of the event before the first."""
_TABLES = """
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER, sha256 TEXT);
CREATE TABLE IF NOT EXISTS models (model TEXT PRIMARY KEY, digest TEXT);
"""


class Verified:
    """The verified part of the log of one registry.

    Args:
        place: of the registry: an absolute path, or a URL.
    """

    def __init__(self, place: str) -> None:
        name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self.file: Path = state_folder() / "registries" / f"{name}.db"

    def known(self) -> tuple[int, str]:
        """Number and SHA-256 of the last verified event."""
        with self._open() as database:
            return _head(database)

    def add(self, known: tuple[int, str], events: Iterable[Event]) -> None:
        """Store that events were verified.

        Args:
            known: number and SHA-256 of the event before them. Nothing is stored if another process was faster.
        """
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            if _head(database) != known:
                return
            digests: dict[str, str] = {}
            for event in events:
                model = _model(event)
                if model not in digests:
                    digests[model] = _digest(database, model)
                digests[model] = _next(digests[model], event)
                known = event.sequence, event.sha256
            database.executemany("INSERT OR REPLACE INTO models VALUES (?, ?)", digests.items())
            database.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", known)
            database.commit()

    def verified(self, model: str, events: Iterable[Event]) -> list[Event]:
        """The verified ones of the events.

        Args:
            events: all events of a model and all of no model, oldest first.

        Raises:
            UserError: they differ from the verified ones.
        """
        with self._open() as database:
            database.execute("BEGIN")
            last, _ = _head(database)
            wanted = {name: _digest(database, name) for name in (model, "")}
        made = dict.fromkeys(wanted, "")
        verified_events = [event for event in events if event.sequence <= last]
        for event in verified_events:
            made[_model(event)] = _next(made.get(_model(event), ""), event)
        if made != wanted:
            raise changed(f"an event of {model}, which was verified here before", self.file)
        return verified_events

    def forget(self) -> None:
        """Forget the place, for a new registry."""
        self.file.unlink(missing_ok=True)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = sqlite3.connect(self.file, isolation_level=None, timeout=60)
        except (OSError, sqlite3.Error) as error:
            action = "make the folder writable, or set XDG_STATE_HOME to another one"
            raise UserError(f"{self.file.parent}: {error}", action=action) from error
        with closing(database):
            try:
                database.execute("PRAGMA synchronous = OFF")  # after a machine crash the log is checked again
                database.executescript(_TABLES)
                yield database
            except sqlite3.DatabaseError as error:
                raise UserError(f"{self.file}: {error}", action="remove the file; the log is checked again") from error


def changed(what: str, file: Path | None = None) -> UserError:
    """The error for a changed log.

    Args:
        file: with the verified state; None: the log contradicts itself.
    """
    action = f"; if another registry stands here on purpose, remove {file}" if file else ""
    return UserError(f"the log was changed at {what}", action=f"restore the registry from a copy{action}")


def _head(database: sqlite3.Connection) -> tuple[int, str]:
    row: tuple[int, str] | None = database.execute("SELECT number, sha256 FROM head").fetchone()
    return NOTHING if row is None else row


def _digest(database: sqlite3.Connection, model: str) -> str:
    row: tuple[str] | None = database.execute("SELECT digest FROM models WHERE model = ?", (model,)).fetchone()
    return "" if row is None else row[0]


def _next(digest: str, event: Event) -> str:
    return hashlib.sha256(f"{digest} {event.expected()}".encode()).hexdigest()


def _model(event: Event) -> str:
    return str(event.detail.get("model") or "") if isinstance(event.detail, Mapping) else ""
