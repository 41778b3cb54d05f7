"""Datasets of LLaMA-Factory: what `dataset_info.json` says of each, as a source of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_rows import dataset_info

from finetooth_importer.account import Account, Outcome


def listed(account: Account, folder: Path | None) -> tuple[Mapping[str, Any], Path] | None:
    """What `dataset_info.json` says, and the folder it lies in, if it is there: seen from the current folder, as data
    of a recipe is, if it lies in that.

    Raises:
        DataError: it is there and broken.
    """
    inside = account.get("dataset_dir", "data")
    if folder is None or not isinstance(inside, str):
        return None
    beside = () if account.has("dataset_dir") else (folder,)
    for place in (folder / inside, Path(inside), *beside, *(parent / inside for parent in folder.parents)):
        file = place / dataset_info.FILE
        if file.is_file():
            here, there = Path.cwd().resolve(), place.resolve()
            return dataset_info.read_listing(file), there.relative_to(here) if there.is_relative_to(here) else place
    return None


def source(account: Account, where: str, name: str, known: tuple[Mapping[str, Any], Path] | None) -> Any:
    """A dataset as a source of the recipe; its name where nothing is known of it.

    Args:
        where: the key that names it, for the account.
        known: what `listed` found.
    """
    if known is None or name not in known[0]:
        return name
    entry = dataset_info.listed(known[0], name, known[1])
    for remark in entry.remarks:
        outcome: Outcome = "otherwise" if remark.taken else "not taken"
        account.inside(f"{where}.{remark.key}", remark.value, outcome, note=remark.text)
    return name if entry.pick is None else dict(entry.pick)
