"""Files by their SHA-256, each stored once."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from finetooth_hooks.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 2**20
RESTORE = "restore the registry from a copy"


class Blobs:
    """A folder of blobs.

    Args:
        folder: where they lie; made when the first is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Where a blob lies.

        Raises:
            UserError: the text is not a SHA-256.
        """
        if not _SHA256.fullmatch(sha256):
            raise UserError(f"{sha256!r} is not a SHA-256", action="the registry is damaged")
        return self.folder / sha256[:2] / sha256

    def put(self, source: Path) -> str:
        """Store a file and return its SHA-256. The content is hashed while it is copied."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.folder)
        try:
            with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
                sha256 = _copy(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
            target = self.path(sha256)
            target.parent.mkdir(exist_ok=True)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
        return sha256

    def put_bytes(self, content: bytes) -> str:
        """Store bytes and return their SHA-256."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(content)
            file.flush()
            return self.put(Path(file.name))

    def read(self, sha256: str) -> bytes:
        """The bytes of a small blob.

        Raises:
            UserError: the blob is missing or damaged.
        """
        with self._opened(sha256) as reader:
            content = reader.read()
        self._compare(sha256, hashlib.sha256(content).hexdigest())
        return content

    def copy(self, sha256: str, target: Path) -> None:
        """Write a blob to a new file, checked while it is copied.

        Raises:
            UserError: the blob is missing or damaged; the file is not there then.
        """
        with self._opened(sha256) as reader, target.open("xb") as writer:
            found = _copy(reader, writer)
        try:
            self._compare(sha256, found)
        except UserError:
            target.unlink()
            raise

    def check(self, sha256: str) -> None:
        """Read a blob and compare it with its name.

        Raises:
            UserError: the blob is missing or damaged.
        """
        with self._opened(sha256) as reader:
            self._compare(sha256, hashlib.file_digest(reader, "sha256").hexdigest())

    def remove_unnamed(self, named: set[str], *, dry_run: bool) -> list[tuple[str, int]]:
        """Remove blobs that nothing names; returns SHA-256 and bytes of each."""
        unnamed = [path for path in self.folder.glob("??/*") if path.name not in named]
        sizes = sorted((path.name, path.stat().st_size) for path in unnamed)
        if not dry_run:
            for path in unnamed:
                path.unlink()
        return sizes

    def _opened(self, sha256: str) -> BufferedReader:
        try:
            return self.path(sha256).open("rb")
        except OSError as error:
            raise UserError(f"blob {sha256} is missing", action=RESTORE) from error

    def _compare(self, sha256: str, found: str) -> None:
        if found != sha256:
            raise UserError(f"blob {sha256} was changed", action=RESTORE)


def _copy(reader: BinaryIO, writer: BinaryIO) -> str:
    """Copy a file; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while piece := reader.read(_PIECE):
        digest.update(piece)
        writer.write(piece)
    return digest.hexdigest()
