"""Marks prepared data that a process reads: it holds a shared lock on their file, which ends with the process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: an open file can be neither moved nor removed
    fcntl = None  # type: ignore[assignment]


def hold(path: Path) -> int:
    """Mark a file as in use until the returned descriptor is closed, at the latest until the process ends.

    Returns:
        A file descriptor, not inherited by other processes.

    Raises:
        OSError: the file does not exist.
    """
    descriptor = os.open(path, os.O_RDONLY)
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks; see `unused`
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def unused(path: Path) -> Iterator[bool | None]:
    """Yields whether the file is unused by all processes, including this one; None if the platform or the file system
    cannot tell. Until the context ends, no process can mark it."""
    descriptor = -1
    free: bool | None = None
    try:
        if fcntl is not None:
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
    except FileNotFoundError:
        free = True
    except BlockingIOError:
        free = False
    except OSError:
        free = None
    try:
        yield free
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def all_unused(paths: Sequence[Path]) -> Iterator[bool | None]:
    """As `unused`, for several files: whether all of them are unused."""
    with ExitStack() as stack:
        states = [stack.enter_context(unused(path)) for path in paths]
        yield False if False in states else None if None in states else True
