"""The source `sql`: the rows of a query, read one after another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetooth_hooks import DataError, Options, RecipeError, Row
from finetooth_hooks.bases import SourceBase
from finetooth_toolbox.text.column_names import check_columns
from finetooth_toolbox.text.environment import names_variable
from pydantic import model_validator
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from finetooth_sql.database import Database
from finetooth_sql.statement import problem

ROWS_AT_ONCE = 1000


class SqlOptions(Options):
    """Options of `sql`."""

    url: str
    """The database: `sqlite:///FILE` or `postgresql://USER:${PASSWORD}@HOST/NAME`. `${NAME}` stands for an environment
    variable; a password in the recipe itself is refused."""
    path: str = ""
    """An SQLite file, instead of `url`."""
    query: str = ""
    """One SELECT with ORDER BY, so that the rows always come in the same order: sort by columns that together are
    unique. For SQLite it may be left out: all rows of `table` are read."""
    table: str = ""
    """The SQLite table to read, in the order of row ids. Default: the only one."""

    @model_validator(mode="before")
    @classmethod
    def _has_an_address(cls, options: Any) -> Any:
        """A file is an address too; a server's database that is named alone, as files are, has no rows yet."""
        if not isinstance(options, dict) or not options.keys() & {"url", "path"}:
            return options
        path = str(options.get("path", ""))
        url = str(options.get("url", path if "://" in path else f"sqlite:///{path}"))
        if not (url.startswith("sqlite:") or options.get("query") or names_variable(url)):
            url = "postgresql://USER:${PASSWORD}@HOST/NAME" if "@" in url else url  # it may hold a password
            raise ValueError(
                "a database needs a query that gives the rows: write "
                f"{{name: sql, url: '{url}', query: 'SELECT ... FROM ... ORDER BY ...'}}"
            )
        return {**options, "url": url}


def build(options: SqlOptions) -> QueryRows:
    database = Database(options.url)
    query = options.query or database.all_of(options.table)
    wrong = problem(query)
    if wrong is not None:
        raise RecipeError("source sql, query", wrong[0], action=wrong[1])
    return QueryRows(database, query)


class QueryRows(SourceBase):
    """Rows of a query; their ids are `DATABASE#QUERY:row NUMBER`, from 1, with a short hash of the query."""

    def __init__(self, database: Database, query: str) -> None:
        self._database, self._query = database, query
        self._seen = ""
        self.name = f"{database.name}#{hashlib.sha256(query.encode()).hexdigest()[:6]}"

    def files(self) -> tuple[Path, ...] | None:
        """The file of an SQLite database, and its journal where it has one; None for a server."""
        file = self._database.file
        if file is None:
            return None
        journal = file.with_name(f"{file.name}-wal")
        return (file, journal) if journal.is_file() and journal.stat().st_size else (file,)

    def identity(self) -> str | None:
        """SHA-256 over all rows of a server's query: they are read once more, which takes less than preparing them.

        Raises:
            DataError: see `rows`.
        """
        digest = hashlib.sha256()
        for record in self._records():
            digest.update(repr(record).encode("utf-8", "surrogatepass"))
        self._seen = digest.hexdigest()
        return self._seen

    def rows(self) -> Iterator[Row]:
        """Yields the query's rows and checks that they did not change since they were identified.

        Raises:
            DataError: the database cannot be reached, the query is wrong, has no rows or two columns of one name, or
                gives other rows than when they were identified.
        """
        digest = hashlib.sha256()
        number = 0
        names: Sequence[str] = ()
        for number, record in enumerate(self._records()):
            digest.update(repr(record).encode("utf-8", "surrogatepass"))
            if number:
                yield Row(f"{self.name}:row {number}", dict(zip(names, record, strict=True)))
            else:
                names = record
        if not number:
            raise DataError(self.name, "the query gives no rows", action="check its conditions")
        if self._seen not in ("", digest.hexdigest()):
            raise DataError(
                self.name,
                "the rows changed while they were read",
                action="run it again when nobody writes to the tables",
            )

    def _records(self) -> Iterator[tuple[Any, ...]]:
        """Names of the columns, then the values of each row."""
        try:
            with self._database.engine().connect() as connection:
                options = {"stream_results": True, "no_parameters": True}
                result = connection.execution_options(**options).exec_driver_sql(self._query)
                names = tuple(result.keys())
                check_columns(names, self.name, "rename one with AS")
                yield names
                for part in result.partitions(ROWS_AT_ONCE):
                    yield from map(_values, part)
        except SQLAlchemyError as error:
            message = str(error.orig) if isinstance(error, DBAPIError) else str(error)
            text = " ".join(self._database.hide(message).split())[:300]
            raise DataError(self.name, f"the query failed: {text}", action="check url and query") from None


def _values(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
