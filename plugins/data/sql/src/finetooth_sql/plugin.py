"""The source `sql`: the rows of a query."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Source, hookimpl


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="sql",
        build="finetooth_sql.source:build",
        summary="the rows of a query, from SQLite or PostgreSQL",
    )
