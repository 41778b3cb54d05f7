"""The source `datasets`: tables and hub datasets through the datasets library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import Claim, Source, hookimpl

ENDINGS = (".csv", ".tsv", ".json", ".parquet", ".arrow")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def claims(reference: str) -> Claim | None:
    """Files of tables are its own by their name, and names of the form `org/name` that are nothing on this machine."""
    ending = Path(reference).suffix.lower()
    if ending in ENDINGS:
        return Claim(2, f"a {ending} file")
    # a path that was mistyped has an ending, and a hub id of a dataset hardly ever does
    if not ending and not Path(reference).exists() and HUB_ID.fullmatch(reference):
        return Claim(1, "has the form of a hub id")
    return None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="datasets",
        build="finetooth_datasets.source:build",
        summary="CSV, TSV, JSON, Parquet and Arrow files, and datasets of the hub",
        claims=claims,
    )
