"""SHA-256 of files, remembered until the file system reports a change."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from finetooth_hooks.errors import DataError

from finetooth_toolbox.files.cache_folder import write_whole

SETTLED = 2 * 10**9
"""Smallest age of a file's last change for its hash to be remembered, in nanoseconds: earlier, it could change again
within one tick of the file system's clock and look the same."""

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, times of the last change of content and of the last change of anything, in ns. Users cannot set
the last one, unlike the time of the content."""


def signature(path: Path) -> Signature:
    """The file system's facts about a file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileHashes:
    """Hashes by file.

    Args:
        folder: folder of the remembered hashes; None remembers nothing.
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
        """Check after reading that the files have not changed since they were hashed.

        Raises:
            DataError: a file has changed.
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
        with suppress(OSError):  # the file is hashed again next time
            write_whole(place, json.dumps({"file": str(path), "signature": seen, "sha256": digest}).encode())


def changed(path: Path) -> DataError:
    """The error for a file that changed while it was in use."""
    return DataError(path.as_posix(), "the file changed while it was read", action="run it again when it is complete")
