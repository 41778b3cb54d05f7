"""The source `datasets`: tables and hub datasets through the datasets library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import Claim, Source, hookimpl

ENDINGS = (".csv", ".tsv", ".json", ".parquet", ".arrow")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_saved(path: Path) -> bool:
    """Whether the library wrote a dataset there with `save_to_disk`, of several splits or of one."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def claims(reference: str) -> Claim | None:
    """Folders in which the library saved a dataset are its own, and names of the form `org/name` that are nothing on
    this machine. Files it reads only if it is picked by name, for their splits; a source for tables claims them."""
    if "://" in reference:
        return None
    ending = Path(reference).suffix.lower()
    if reference and is_saved(Path(reference)):
        return Claim(2, "a folder with a dataset saved to disk")
    # a path that was mistyped has an ending, and a hub id of a dataset hardly ever does
    if not ending and not Path(reference).exists() and HUB_ID.fullmatch(reference):
        return Claim(1, "has the form of a hub id")
    return None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="datasets",
        build="finetooth_datasets.builder:build",
        summary="datasets from the hub or saved to disk; if a recipe names it, also table files with splits",
        claims=claims,
    )
