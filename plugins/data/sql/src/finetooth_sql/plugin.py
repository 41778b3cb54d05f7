"""The source `sql`: the rows of a query."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Source, hookimpl

ENDINGS = (".sqlite", ".sqlite3", ".db")
ADDRESSES = ("sqlite", "postgresql", "postgres")


def claims(reference: str) -> Claim | None:
    """Databases are its own, by their ending or address; the options then ask for a query."""
    scheme = reference.partition("://")[0].lower() if "://" in reference else ""
    if scheme in ADDRESSES or (not scheme and reference.lower().endswith(ENDINGS)):
        return Claim(2, "a database")
    return None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="sql",
        build="finetooth_sql.source:build",
        summary="the rows of a query, from SQLite or PostgreSQL",
        claims=claims,
    )
