"""SHA-256 of files, remembered for as long as the file system says that they did not change."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from finetooth_hooks.errors import DataError

from finetooth_toolbox.files.cache_folder import write_whole

SETTLED = 2 * 10**9
"""Nanoseconds after its last change from which on a file is remembered: before, it could change again within one tick
of the file system's clock and look the same."""

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, times of the last change of content and of the last change at all, in ns. The last one cannot be
set by hand, as the time of the content can."""


def signature(path: Path) -> Signature:
    """What the file system says of a file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Hashes by file.

    Args:
        folder: where they are remembered; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._seen: dict[Path, Signature] = {}

    def sha256(self, path: Path) -> str:
        """Returns the SHA-256 of a file, remembered while the file does not change.

        Raises:
            DataError: the file cannot be read, or changes while it is read.
        """
        try:
            before = signature(path)
            known = self._remembered(path, before)
            digest = known or file_sha256(path)
            after = signature(path)
        except OSError as error:
            raise DataError(
                path.as_posix(), f"it cannot be read: {error.strerror or error}", action="check the path"
            ) from error
        if before != after:
            raise changed(path)
        self._seen[path] = before
        if not known:
            self._remember(path, before, digest)
        return digest

    def check_unchanged(self) -> None:
        """After the files were read: they are still those that were hashed.

        Raises:
            DataError: one is not.
        """
        for path, seen in self._seen.items():
            if not path.exists() or signature(path) != seen:
                raise changed(path)

    def _place(self, path: Path) -> Path | None:
        name = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogatepass")).hexdigest()
        return None if self._folder is None else self._folder / f"{name}.json"

    def _remembered(self, path: Path, now: Signature) -> str:
        place = self._place(path)
        if place is None:
            return ""
        try:
            content = json.loads(place.read_bytes())
            return str(content["sha256"]) if content["signature"] == list(now) else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _remember(self, path: Path, seen: Signature, digest: str) -> None:
        place = self._place(path)
        if place is None or time.time_ns() - max(seen[3], seen[4]) < SETTLED:
            return
        with suppress(OSError):  # it is hashed again next time
            write_whole(place, json.dumps({"file": str(path), "signature": seen, "sha256": digest}).encode())


def changed(path: Path) -> DataError:
    """The error for a file that changed under our hands."""
    return DataError(path.as_posix(), "the file changed while it was read", action="run it again when it is complete")
