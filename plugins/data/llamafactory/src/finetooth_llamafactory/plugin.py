"""The source `llamafactory`: datasets that a `dataset_info.json` lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import Claim, Source, hookimpl


def parted(reference: str) -> tuple[str, str]:
    """The folder or file, and the names of datasets after a colon; an existing path with a colon is only a path."""
    path, colon, names = reference.rpartition(":")
    if not colon or not path or "/" in names or "\\" in names:
        return reference, ""
    return path, names


def claims(reference: str) -> Claim | None:
    """A folder with a `dataset_info.json` that lists datasets, or that file, with or without names after it."""
    from finetooth_rows.dataset_info import listing

    if not reference or "://" in reference or "\0" in reference:
        return None
    for path in dict.fromkeys((reference, parted(reference)[0])):
        if listing(Path(path)) is not None:
            return Claim(2, "datasets that a dataset_info.json of LLaMA-Factory lists")
    return None


@hookimpl
def ft_sources() -> Iterator[Source]:
    yield Source(
        name="llamafactory",
        build="finetooth_llamafactory.source:build",
        summary="datasets that a dataset_info.json of LLaMA-Factory lists, with their formats",
        claims=claims,
    )
