"""Databases by their address: opened to read only, with the secrets kept out of everything that is shown."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from finetooth_hooks import DataError, PluginError, RecipeError, install_command
from finetooth_toolbox.files.missing import MissingFile
from finetooth_toolbox.text.environment import expand, hide, names_variable
from sqlalchemy import URL, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

SETTING = "source sql, url"
SQLITE_MAGIC = b"SQLite format 3\0"
CONNECT_SECONDS = 15


class Database:
    """A database.

    Args:
        address: `sqlite:///file.db` or `postgresql://user:${PASSWORD}@host/name`.

    Raises:
        RecipeError: the text is not an address, or of another kind of database, or holds a password.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        whole = names_variable(address)
        try:
            # else expanded part by part, so that a password may hold any character
            url = make_url(expand(address, SETTING) if whole else address)
        except (ArgumentError, ValueError):
            raise RecipeError(
                SETTING, "it is not an address of a database", action="write sqlite:///FILE or postgresql://HOST/NAME"
            ) from None
        name = address if whole else _name(url)
        if not whole:
            _refuse_password(url)
            url = _expand_variables(url)
        kind = {"postgres": "postgresql"}.get(url.get_backend_name(), url.get_backend_name())
        if kind not in ("sqlite", "postgresql"):
            raise RecipeError(
                SETTING, f"databases of the kind {kind!r} are not read", action="use SQLite or PostgreSQL"
            )
        self.kind, self._url = kind, url
        self.name = name

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(self._url.database or "") if self.kind == "sqlite" else None

    def engine(self) -> Engine:
        """Makes connections that cannot write.

        Raises:
            DataError: the file does not exist, or is not a database.
            PluginError: the driver is not installed.
        """
        if self.file is not None:
            return _sqlite(self.file)
        try:
            engine = create_engine(
                self._url.set(drivername="postgresql+psycopg"),
                poolclass=NullPool,
                connect_args={"connect_timeout": CONNECT_SECONDS},
                hide_parameters=True,
            )
        except ImportError as error:
            raise PluginError(
                "finetooth-sql",
                f"PostgreSQL needs a package that is not installed ({error})",
                action=install_command("finetooth-sql[postgresql]"),
            ) from error
        return engine.execution_options(postgresql_readonly=True)

    def all_of(self, table: str) -> str:
        """A query for all rows of a table.

        Args:
            table: empty: the only one.

        Raises:
            RecipeError: a server's tables have no order of their own.
            DataError: the table does not exist or has no natural order, or the database has several and the recipe
                names none.
        """
        if self.file is None:
            raise RecipeError("source sql, query", "it is empty", action="write a SELECT with ORDER BY")
        listed = "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
        with self.engine().connect() as connection:
            kinds = {str(name): kind for name, kind in connection.exec_driver_sql(listed)}
            tables = [name for name, kind in kinds.items() if kind == "table" and not name.startswith("sqlite")]
            if table not in tables and (table or len(tables) != 1):
                if kinds.get(table) == "view":
                    raise self._unordered(f"the view {table!r}", table)
                problem = (
                    f"it has no table {table!r}" if table else "it has several tables" if tables else "it has no table"
                )
                action = f"set table: {' or '.join(tables)}" if tables else "check url"
                raise DataError(self.name, problem, action=action)
            name = table or tables[0]
            quoted = name.replace('"', '""')
            query = f'SELECT * FROM "{quoted}" ORDER BY rowid'
            try:
                connection.exec_driver_sql(f"EXPLAIN {query}")
            except OperationalError as error:
                if "no such column" not in str(error):
                    raise
                raise self._unordered(f"the table {name!r} was made WITHOUT ROWID: it", name) from None
        return query

    def _unordered(self, subject: str, name: str) -> DataError:
        return DataError(
            self.name,
            f"{subject} has no order of its own",
            action=f"set query: SELECT * FROM {name} ORDER BY ..., with columns that no two rows share",
        )

    def hide(self, message: str) -> str:
        """A message without values of environment variables."""
        message = hide(message, self._address)
        if names_variable(self._address) and self._url.password:
            message = message.replace(str(self._url.password), "***")
        return message


def _sqlite(path: Path) -> Engine:
    name = path.as_posix()
    if not path.is_file():  # SQLite would make it
        raise MissingFile(path, advice="check url; sqlite:////absolute/path has four slashes")
    with path.open("rb") as file:
        start = file.read(len(SQLITE_MAGIC))
    if start != SQLITE_MAGIC:
        problem = "it is not an SQLite database" if start else "the file is empty"
        raise DataError(name, problem, action="check url")
    place = f"file:{quote(str(path.absolute()))}?mode=ro"
    return create_engine("sqlite://", creator=lambda: sqlite3.connect(place, uri=True), poolclass=NullPool)


def _name(url: URL) -> str:
    """An address without user and password."""
    where = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{where}/{url.database or ''}"


def _refuse_password(url: URL) -> None:
    """A recipe is kept in run folders and logs."""
    passwords = [str(url.password or "")]
    passwords += [str(value) for key, value in url.query.items() if "password" in key.lower()]
    if any(value and "${" not in value for value in passwords):
        raise RecipeError(
            SETTING,
            "it holds a password, which a recipe must not keep",
            action="put the password in an environment variable and write ${NAME} in its place",
        )


def _expand_variables(url: URL) -> URL:
    def filled(text: str | None) -> str | None:
        return None if text is None else expand(text, SETTING)

    return url.set(
        username=filled(url.username),
        password=filled(None if url.password is None else str(url.password)),
        host=filled(url.host),
        database=filled(url.database),
        query={key: expand(value, SETTING) if isinstance(value, str) else value for key, value in url.query.items()},
    )
