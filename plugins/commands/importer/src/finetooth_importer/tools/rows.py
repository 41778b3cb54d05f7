"""Where rows lie, as tools that hand it on to `datasets.load_dataset` say it, by the sources that are here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

BUILDERS = ("json", "csv", "text", "parquet", "arrow")
"""Names that stand where a hub id does, and say how `data_files` are read."""


def source(path: str, **options: Any) -> dict[str, Any]:
    """The pick of a source by a path or a hub id, for where its rows need options of their own."""
    match = re.search(r"\.(\w+)(\.gz|\.zst)?$", path)
    ending = match[1] if match else ""
    if ending in ("jsonl", "ndjson"):
        return {"name": "jsonl", "path": path, **options}
    if ending in ("json", "csv", "tsv"):
        return {"name": "tables", "path": path, **options}
    if ending in ("txt", "md"):
        return {"name": "text", "path": path, **options}
    return {"name": "datasets", "path": path, "split": "train", **options}


def is_local(path: str) -> bool:
    """Whether a path means a file or a folder, not a dataset of the hub."""
    return (
        path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or re.search(r"\.(jsonl?|ndjson|csv|tsv|parquet|arrow|txt|md)(\.gz|\.zst)?$", path) is not None
        or Path(path).is_dir()
    )


def exists(path: str) -> bool:
    """Whether a path, or what stands before a slice behind it, is on this machine."""
    return Path(path).exists() or Path(re.sub(r"\[[^\[\]]*\]$", "", path)).exists()


def listed(files: Any, split: str = "train") -> list[str]:
    """The files of a `data_files`: one, several, or those of a split."""
    if isinstance(files, Mapping):
        files = files.get(split, next(iter(files.values()), []))
    return [str(file) for file in (files if isinstance(files, list | tuple) else [files])]


def named(path: str, files: Any, split: str = "train") -> list[str]:
    """The paths of all files that `data_files` of `path` means, patterns as what they find now; empty where they lie in
    a dataset of the hub.

    Args:
        path: a builder, whose files are named from the current folder, or the folder that they lie in.
    """
    if path not in BUILDERS and not is_local(path):
        return []
    inside = "" if path in BUILDERS else path.rstrip("/") + "/"
    paths = [file if file.startswith(("/", "~")) else inside + file for file in listed(files, split)]
    return [file for path in paths for file in (sorted(glob(path, recursive=True)) or [path])]  # noqa: PTH207 - a user's
