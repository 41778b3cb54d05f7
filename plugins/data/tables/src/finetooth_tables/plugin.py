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
SHEETS = (".xlsx", ".xls", ".ods")
DOCUMENTS = (".docx",)
"""Endings of documents whose tables are read; by itself such a file is a text."""
ENDINGS = (*DELIMITED, *JSON, *ARROW, *PARQUET, *SHEETS, *DOCUMENTS)


def claims(reference: str) -> Claim | None:
    """Files of tables are its own, by their name."""
    return None if reference.lower().endswith(DOCUMENTS) else claim_file(reference, ENDINGS)


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="tables",
        build="finetooth_tables.source:build",
        summary="CSV, TSV, JSON (also .gz, .zst), Parquet, Arrow, Feather, sheets (.xlsx, .xls, .ods), .docx tables",
        claims=claims,
    )
