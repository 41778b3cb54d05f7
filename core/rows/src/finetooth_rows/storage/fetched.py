"""Files that plugins have fetched into the cache: `plugins/NAME/contents/KEY/`, one folder per key (`Context.cache`).

A plugin marks the files that it uses (`Context.hold`), which also sets the folder's time of modification, the time of
the last use.
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
    """A folder of files that a plugin has fetched and can fetch again.

    Attributes:
        key: the folder's name.
        folder: its path.
        plugin: name of the plugin's folder.
        held: its files; a reader marks those that it uses.
        bytes: on disk.
        used: time of the last use, seconds since 1970.
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
    """All folders that plugins have fetched into a cache.

    Args:
        root: of the cache.
    """
    return [entry for folder in _folders(root) if (entry := _read(folder)) is not None]


def sweep_fetched(root: Path) -> None:
    """Remove incomplete downloads: old hidden files and folders."""
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
