"""Files that plugins have fetched and keep: `plugins/NAME/contents/KEY/`, a folder for each (`Context.cache`).

A plugin marks what it uses (`Context.hold`), which also says when that was: the folder's time of modification is its
last use.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetooth_toolbox.files.cache_folder import ABANDONED

PLUGINS = "plugins"
CONTENTS = "contents"


@dataclass(frozen=True)
class Fetched:
    """Something that a plugin has fetched and would fetch again.

    Attributes:
        key: the folder's name.
        folder: where it lies.
        plugin: name of the folder of the plugin.
        held: its files; a reader marks those it uses.
        bytes: on disk.
        used: when last, seconds since 1970.
    """

    key: str
    folder: Path
    plugin: str
    held: tuple[Path, ...]
    bytes: int
    used: float

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the files."""
        return tuple(path.name for path in self.held)


def fetched(root: Path) -> list[Fetched]:
    """Everything that plugins keep in a cache.

    Args:
        root: of the cache.
    """
    return [entry for folder in _folders(root) if (entry := _read(folder)) is not None]


def sweep_fetched(root: Path) -> None:
    """Remove what was never fetched to its end: hidden files and folders that nobody has written to for long."""
    for place in (root / PLUGINS).glob("*"):
        for path in (*place.glob(".*"), *(place / CONTENTS).glob(".*")):
            with suppress(OSError):  # completed or removed meanwhile
                if time.time() - path.stat().st_mtime > ABANDONED:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _folders(root: Path) -> Iterator[Path]:
    for path in (root / PLUGINS).glob(f"*/{CONTENTS}/*"):
        if path.is_dir() and not path.name.startswith("."):
            yield path


def _read(folder: Path) -> Fetched | None:
    try:
        files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        size = sum(path.stat().st_size for path in files)
        used = folder.stat().st_mtime
    except OSError:  # removed meanwhile
        return None
    return Fetched(folder.name, folder, folder.parent.parent.name, files, size, used)
