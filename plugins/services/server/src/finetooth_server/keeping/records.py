"""A server's records in a database, which survive a crash.

    keys          who may call; `lasts`: the seconds that a key was made for, whatever ended it since; 0 is for ever
    sessions      of clients
    models        that clients train: the recipe, how far the log was applied, the last step in it, where the last
                  snapshot stands, and the first call that a replay on that snapshot needs
    calls         the log: every call with its arguments before it is executed, its result afterwards
    samplers      weights that can be sampled from
    (a model, a sampler: `id` is the server's, `name` its client's, where another tenant had taken that id before)
    checkpoints   folders that `save` wrote
    key_events    what was done to keys and does not stand in the audit record yet
    data_keys     what arguments and results are encrypted with, itself encrypted; empty without an encryption key

A call is written before its client learns that it was accepted. Its result is written together with the mark that it
was applied. So after a crash the log says exactly what to repeat, and nothing is executed twice.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from finetooth_hooks import UserError, install_command
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError

from finetooth_server.faults import DiskFull

QUEUED, DONE, FAILED = "queued", "done", "failed"

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("lasts", Float),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("seen", Float, nullable=False),
    Column("closed", Boolean, nullable=False, default=False),
    Column("about", Text, nullable=False, default="{}"),
    Column("heartbeat", Boolean),
    Column("name", Text),
    Column("finish", Text),
)

models = Table(
    "models",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("session", String(64), nullable=False, index=True),
    Column("base", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("about", Text, nullable=False, default="{}"),
    Column("created", Float, nullable=False),
    Column("applied", Integer, nullable=False, default=-1),
    Column("stepped", Integer, nullable=False, default=-1),
    Column("snapshot", Integer, nullable=False, default=-1),
    Column("replay", Integer, nullable=False, default=0),
    Column("closed", Boolean, nullable=False, default=False),
    Column("name", String(128)),
)

calls = Table(
    "calls",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("queue", String(160), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("operation", String(32), nullable=False),
    Column("face", String(16), nullable=False),
    Column("batch", String(64)),
    Column("arguments", LargeBinary),
    Column("state", String(8), nullable=False),
    Column("result", LargeBinary),
    Column("error", Text),
    Column("category", String(8)),
    Column("created", Float, nullable=False),
    Column("finished", Float),
    Column("delivered", Float),
    Column("key", String(32)),
    Column("begun", Integer),
    Column("alone", Integer),
    Column("dropped", Boolean),
    Column("cancelled", Boolean),
    Column("tokens", BigInteger),
    Column("memory", BigInteger),
    Column("name", String(160)),
    UniqueConstraint("queue", "seq", name="once"),
    Index("waiting", "state", "batch"),
    Index("of_tenant", "tenant", "state"),
)

samplers = Table(
    "samplers",
    metadata,
    Column("id", String(160), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("session", String(64), nullable=False),
    Column("base", Text, nullable=False),
    Column("checkpoint", String(64)),
    Column("created", Float, nullable=False),
    Column("pruned", BigInteger),
    Column("name", String(160)),
    Column("joined", Integer),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("model", String(128), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("name", String(160), nullable=False),
    Column("base", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("about", Text, nullable=False, default="{}"),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("size", BigInteger, nullable=False, default=0),
    Column("public", Boolean),
    UniqueConstraint("model", "kind", "name", name="one_name"),
)

key_events = Table(
    "key_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("event", String(32), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("key", String(32), nullable=False),
    Column("at", Float, nullable=False),
)

data_keys = Table(
    "data_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("master", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
)


class Records:
    """The database. Writing transactions run one after another; readers do not wait for them.

    Args:
        url: SQLAlchemy's.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            self.engine = _open(url)
            metadata.create_all(self.engine)
            _add_columns(self.engine)
        except (SQLAlchemyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            action = "check its URL and its server"
            if isinstance(error, ImportError):
                action = install_command("finetooth-server[postgresql]")
            raise UserError(f"database: it cannot be opened: {reason}", action=action) from error
        self._writing = threading.RLock()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction.

        Raises:
            DiskFull: the disk of the database has no room; nothing was written.
        """
        with self._writing, _faults(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that reads committed data."""
        with _faults(), self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close the database."""
        self.engine.dispose()


def now() -> float:
    """Seconds since 1970."""
    return time.time()


@contextmanager
def _faults() -> Iterator[None]:
    """Convert errors of a database.

    Raises:
        UserError: a text of a request holds a NUL, which PostgreSQL refuses.
        DiskFull: the disk is full.
    """
    try:
        yield
    except DataError as error:
        raise UserError("a text holds a character that cannot be kept", action="leave it out") from error
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_FULL or code in _NO_ROOM or getattr(error.orig, "sqlstate", "") == "53100":
            raise DiskFull from error
        raise


_NO_ROOM = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_FSYNC)
"""SQLite's errors if a file next to the database has no room."""


def _add_columns(engine: Engine) -> None:
    """Columns added after the first release; all may be empty."""
    there = inspect(engine)
    for table in metadata.sorted_tables:
        known = {column["name"] for column in there.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                kind = column.type.compile(engine.dialect)
                with engine.begin() as connection:
                    connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))


def _open(url: str) -> Engine:
    address = make_url(url)
    if address.get_backend_name() in ("postgresql", "postgres"):
        return create_engine(address.set(drivername="postgresql+psycopg"), pool_pre_ping=True, hide_parameters=True)
    if address.get_backend_name() != "sqlite":
        raise UserError(
            f"database: {address.get_backend_name()} is not offered",
            action="use sqlite:///FILE or postgresql://HOST/NAME",
        )
    engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": 30}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def durable(connection, record):  # type: ignore[no-untyped-def]
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # accepted calls survive a power cut
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.close()

    return engine
