"""The source `tables`: files of rows and columns."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Claim, Source, hookimpl
from finetooth_toolbox.files.packed import claim_file

DELIMITED = tuple(f".{name}{packed}" for name in ("csv", "tsv") for packed in ("", ".gz", ".zst"))
JSON = (".json", ".json.gz", ".json.zst")
LINES = (".jsonl", ".ndjson")
"""Endings of JSON lines, which a file with an array may have too."""
ARROW = (".arrow", ".feather", ".ipc")
PARQUET = (".parquet",)
SHEETS = (".xlsx",)
ENDINGS = (*DELIMITED, *JSON, *ARROW, *PARQUET, *SHEETS)


def claims(reference: str) -> Claim | None:
    """Files of tables are its own, by their name."""
    return claim_file(reference, ENDINGS)


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="tables",
        build="finetooth_tables.source:build",
        summary="CSV, TSV and JSON files (also .gz and .zst), Parquet, Arrow, Feather and Excel (.xlsx)",
        claims=claims,
    )
