"""Shows hashes of the data files in the plan, and compares them with the recipe's pins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Protocol

from finetooth_hooks.errors import DataError
from finetooth_toolbox.decisions import Decisions
from finetooth_toolbox.files.file_hashes import FileHashes

from finetooth_rows.picked import PickedSource

SHOWN = 5
"""Largest number of named files."""


def corpus_sha256(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of several files, by name and hash: over the lines `HASH  NAME`, sorted."""
    return sha256("".join(sorted(f"{digest}  {name}\n" for name, digest in files)).encode(errors="replace")).hexdigest()


class Snapshot(Protocol):
    """The pinned hashes in a recipe's `data.snapshot`."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str | None: ...


def show_files(log: Decisions, sources: Sequence[PickedSource], hashes: FileHashes) -> None:
    """Show the hash of each source in the plan.

    Raises:
        DataError: a file differs from the recipe's pin, or a pinned source has no files.
    """
    for picked in sources:
        setting = f"{picked.setting}.sha256"
        files = _files(picked, hashes)
        if not files:
            if picked.pin is not None:
                raise _unknowable(setting, picked)
            continue
        digest = next(iter(files.values())) if len(files) == 1 else corpus_sha256(files.items())
        if isinstance(picked.pin, Mapping):
            _check_each(setting, picked.pin, files)
        elif picked.pin is not None and picked.pin.lower() != digest:
            raise DataError(
                setting, f"{_described(files)} changed: the recipe pins {picked.pin.lower()}, found is {digest}",
                action=f"restore the data, or set {setting} to what was found",
            )  # fmt: skip
        log.decide(setting, digest, _described(files) + (", as the recipe pins it" if picked.pin else ""))


def check_snapshot(log: Decisions, snapshot: Snapshot, sources: Sequence[PickedSource], hashes: FileHashes) -> None:
    """Compare all data files with the pins in `data.snapshot`.

    Raises:
        DataError: a file differs from its pin, or a source has no files.
    """
    everything: list[tuple[str, str]] = []
    for picked in sources:
        files = _files(picked, hashes)
        if not files:
            raise _unknowable("data.snapshot", picked)
        everything += files.items()
    sha256 = corpus_sha256(everything)
    if snapshot.sha256 is not None and snapshot.sha256.lower() != sha256:
        shown = ", ".join(f"{name} {digest}" for name, digest in everything[:SHOWN])
        raise DataError(
            "data.snapshot",
            f"the data files are not {snapshot.name}: the recipe pins {snapshot.sha256.lower()}, found is {sha256} "
            f"({shown}{', ...' if len(everything) > SHOWN else ''})",
            action="restore the data, or set data.snapshot.sha256 to what was found",
        )
    count = f"{len(everything)} {'file' if len(everything) == 1 else 'files'}"
    pinned = "as the recipe pins it" if snapshot.sha256 else "not pinned: add data.snapshot.sha256"
    log.decide("data.snapshot", sha256, f"{snapshot.name}: {count}, {pinned}")


def _files(picked: PickedSource, hashes: FileHashes) -> dict[str, str]:
    """Hashes by name, without the common folder of all files; for rows without files, the hash of their identity."""
    made_of = picked.files()
    if made_of:
        folder = os.path.commonpath([path.parent for path in made_of])
        return {path.relative_to(folder or ".").as_posix(): hashes.sha256(path) for path in made_of}
    options = json.dumps([picked.registered.full_name, picked.options], sort_keys=True, default=str)
    named = picked.source.identity() if made_of is None else options
    name = str(picked.options.get("path", picked.registered.entry.name))
    return {} if named is None else {name: sha256(named.encode()).hexdigest()}


def _check_each(setting: str, pins: Mapping[str, str], files: Mapping[str, str]) -> None:
    for name, pin in pins.items():
        if name not in files:
            raise DataError(setting, f"the pinned file {name} is missing", action=f"files: {', '.join(sorted(files))}")
        if pin.lower() != files[name]:
            raise DataError(
                setting, f"{name} changed: the recipe pins {pin.lower()}, found is {files[name]}",
                action=f"restore the file, or set {setting} to what was found",
            )  # fmt: skip
    new = sorted(set(files) - set(pins))
    if new:
        raise DataError(setting, f"{new[0]} is not pinned", action=f"pin it: {files[new[0]]}")


def _described(files: Mapping[str, str]) -> str:
    """`rows.jsonl`, or the number of files and the first of them with their hashes."""
    if len(files) == 1:
        return next(iter(files))
    shown = ", ".join(f"{name} {digest[:12]}" for name, digest in list(files.items())[:SHOWN])
    return f"{len(files)} files: {shown}{', ...' if len(files) > SHOWN else ''}"


def _unknowable(setting: str, picked: PickedSource) -> DataError:
    return DataError(
        setting, f"{picked.registered.full_name} does not say what its rows are made of, so they cannot be pinned",
        action="remove it, or save the rows to a file",
    )  # fmt: skip
