"""The quarantine: a folder of refused checkpoints next to the others, each with the reason in a file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from finetooth_saving.artifact import write_text

FOLDER = "quarantine"
REASON = "reason.txt"


def set_aside(folder: Path, name: str, reason: str) -> Path:
    """Move a folder into `quarantine` next to it, with the reason in a file; returns its new path."""
    place = folder.parent / FOLDER
    place.mkdir(exist_ok=True)
    target = next(path for path in (place / (name if n == 1 else f"{name}-{n}") for n in count(1)) if not path.exists())
    folder.rename(target)
    write_text(target / REASON, reason + "\n")
    return target


def reasons(folder: Path) -> Mapping[str, str]:
    """The reasons of the checkpoints of `folder` in quarantine, by name."""
    place = folder / FOLDER
    reasons_by_name: dict[str, str] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        try:
            reasons_by_name[path.name] = (path / REASON).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            reasons_by_name[path.name] = "no reason is kept"
    return reasons_by_name
