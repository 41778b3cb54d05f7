"""Files by their SHA-256, each stored once."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from finetooth_hooks.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UPLOAD = re.compile(r"[0-9a-f]{32}")
_PIECE = 2**20
_ABANDONED = 24 * 3600
"""Seconds after which an incomplete upload is removed."""
RESTORE = "restore the registry from a copy"


class Reader(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Read at most `size` bytes; all without it."""
        ...


class Blobs:
    """A folder of blobs.

    Args:
        folder: of the blobs; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """The path of a blob.

        Raises:
            UserError: the text is not a SHA-256.
        """
        if not is_blob(sha256):
            raise UserError(f"{sha256!r} is not a SHA-256", action="the registry is damaged")
        return self.folder / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """The size of a blob; None: it is missing.

        Raises:
            UserError: the text is not a SHA-256.
        """
        path = self.path(sha256)
        return path.stat().st_size if path.is_file() else None

    def put(self, source: Path) -> str:
        """Store a file and return its SHA-256. The content is hashed while it is copied."""
        with source.open("rb") as reader:
            return self._put(reader)

    def put_bytes(self, content: bytes) -> str:
        """Store bytes and return their SHA-256."""
        return self._put(BytesIO(content))

    def _put(self, reader: Reader) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as writer:
                sha256 = _copy(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
            self._take(Path(name), sha256)
        finally:
            Path(name).unlink(missing_ok=True)
        return sha256

    def _take(self, file: Path, sha256: str) -> None:
        """Make a blob of a file with a checked hash."""
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)

    def receive(self, sha256: str, upload: str, offset: int, size: int, part: bytes) -> bool:
        """Store the next part of a file; the complete file becomes a blob if its hash is right.

        Args:
            sha256: of the whole file.
            upload: 32 unique hexadecimal digits.
            offset: bytes of the previous parts.
            size: bytes of the whole file.

        Returns:
            Whether it is complete.

        Raises:
            UserError: the part does not follow the one before it, or the file is another one.
        """
        self.path(sha256)  # refuses invalid names
        if not _UPLOAD.fullmatch(upload) or not 0 <= offset <= offset + len(part) <= size:
            raise UserError("a part of a blob that cannot be", action="send the blob again")
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"upload-{upload}"
        try:
            with file.open("ab" if offset else "xb") as writer:
                if writer.tell() != offset:
                    raise UserError("a part of a blob is missing", action="send the blob again")
                writer.write(part)
                writer.flush()
                os.fsync(writer.fileno())
        except FileExistsError as error:
            raise UserError("this upload has begun before", action="send the blob again") from error
        if offset + len(part) < size:
            return False
        try:
            with file.open("rb") as reader:
                self._compare(sha256, hashlib.file_digest(reader, "sha256").hexdigest())
            self._take(file, sha256)
        finally:
            file.unlink(missing_ok=True)
        return True

    def pieces(self, sha256: str) -> Iterator[bytes]:
        """The content in pieces. The last one comes only after the hash of all was checked.

        Raises:
            UserError: the blob is missing or damaged.
        """
        digest, last = hashlib.sha256(), b""
        with self._opened(sha256) as reader:
            while piece := reader.read(_PIECE):
                digest.update(piece)
                if last:
                    yield last
                last = piece
        self._compare(sha256, digest.hexdigest())
        yield last

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
            UserError: the blob is missing or damaged; no file is left.
        """
        with self._opened(sha256) as reader, target.open("xb") as writer:
            digest = _copy(reader, writer)
        try:
            self._compare(sha256, digest)
        except UserError:
            target.unlink()
            raise

    def check(self, sha256: str) -> None:
        """Read a blob and compare it with its name.

        Raises:
            UserError: the blob is missing or damaged.
        """
        with self._opened(sha256) as reader:
            digest = hashlib.sha256()
            while piece := reader.read(_PIECE):
                digest.update(piece)
        self._compare(sha256, digest.hexdigest())

    def remove_unnamed(self, named: set[str], *, dry_run: bool) -> list[tuple[str, int]]:
        """Remove blobs without references, and incomplete uploads; returns name and bytes of each."""
        unnamed = {name: size for name, size in self._stored() if name not in named}
        begun = [path for path in self.folder.glob("*") if path.is_file()]
        abandoned = [path for path in begun if time.time() - path.stat().st_mtime > _ABANDONED]
        sizes = sorted([*unnamed.items(), *((path.name, path.stat().st_size) for path in abandoned)])
        if not dry_run:
            for name in unnamed:
                self._delete(name)
            for path in abandoned:
                path.unlink()
        return sizes

    def _stored(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of every blob."""
        return ((path.name, path.stat().st_size) for path in self.folder.glob("??/*"))

    def _delete(self, sha256: str) -> None:
        self.path(sha256).unlink()

    def _opened(self, sha256: str) -> AbstractContextManager[Reader]:
        try:
            return self.path(sha256).open("rb")
        except OSError as error:
            raise UserError(f"blob {sha256} is missing", action=RESTORE) from error

    def _compare(self, sha256: str, digest: str) -> None:
        if digest != sha256:
            raise UserError(f"blob {sha256} was changed", action=RESTORE)


def is_blob(name: str) -> bool:
    """Whether it can be the name of a blob: a SHA-256."""
    return _SHA256.fullmatch(name) is not None


def _copy(reader: Reader, writer: BinaryIO) -> str:
    """Copy a file; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while piece := reader.read(_PIECE):
        digest.update(piece)
        writer.write(piece)
    return digest.hexdigest()
