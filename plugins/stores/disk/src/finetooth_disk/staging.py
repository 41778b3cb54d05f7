"""Hidden folders in which checkpoints are written and deleted, and their cleaning after a process died."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, leftovers of `put` stay
    fcntl = None  # type: ignore[assignment]

ABANDONED = ".removed-"
"""Prefix of folders that only wait to be deleted, by the next process that looks."""
_STAGED = ".put-"


class Staging:
    """A hidden folder to fill and rename; what is left of it on leaving goes. It is locked while in use, so that
    another process can tell it from one that a killed process left behind.

    Args:
        root: the folder in which it is made.
        name: what it will be called.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._path = Path(tempfile.mkdtemp(prefix=f"{_STAGED}{name}.", dir=root))
        self._descriptor = os.open(self._path, os.O_RDONLY)
        _lock(self._descriptor)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._descriptor)


def sweep(root: Path) -> None:
    """Delete what killed processes left behind. What cannot be deleted stays: it is hidden and harms nobody."""
    for path in root.iterdir():
        if path.is_symlink() or not path.is_dir():
            continue
        if path.name.startswith(ABANDONED) or (path.name.startswith(_STAGED) and _is_left(path)):
            shutil.rmtree(path, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file or a folder written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or a file system without locks
        return False
    return True


def _is_left(path: Path) -> bool:
    """Whether nobody holds it: it can be locked."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return _lock(descriptor)
        finally:
            os.close(descriptor)
    return False
