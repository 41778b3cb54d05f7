"""Files by their SHA-256, each stored once."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from finetooth_hooks.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PIECE = 2**20


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

    def put(self, source: Path, sha256: str = "") -> str:
        """Store a file and return its SHA-256. The content is hashed while it is copied.

        Args:
            sha256: what the file must hold; empty: anything.

        Raises:
            UserError: the file holds something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=self.folder)
        try:
            with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
                while piece := reader.read(_PIECE):
                    digest.update(piece)
                    writer.write(piece)
                writer.flush()
                os.fsync(writer.fileno())
            found = digest.hexdigest()
            if sha256 and found != sha256:
                raise UserError(f"{source} has SHA-256 {found}, not {sha256}", action="the file was changed")
            target = self.path(found)
            target.parent.mkdir(exist_ok=True)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)
        return found

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
        try:
            content = self.path(sha256).read_bytes()
        except OSError as error:
            raise UserError(f"blob {sha256} is missing", action="restore the registry from a copy") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"blob {sha256} was changed", action="restore the registry from a copy")
        return content

    def copy(self, sha256: str, target: Path) -> None:
        """Write a blob to a file, checked while it is copied.

        Raises:
            UserError: the blob is missing or damaged; the file is not written.
        """
        path, digest = self.path(sha256), hashlib.sha256()
        try:
            with path.open("rb") as reader, target.open("xb") as writer:
                while piece := reader.read(_PIECE):
                    digest.update(piece)
                    writer.write(piece)
        except FileNotFoundError as error:
            raise UserError(f"blob {sha256} is missing", action="restore the registry from a copy") from error
        if digest.hexdigest() != sha256:
            target.unlink()
            raise UserError(f"blob {sha256} was changed", action="restore the registry from a copy")

    def check(self, sha256: str) -> None:
        """Read a blob and compare it with its name.

        Raises:
            UserError: the blob is missing or damaged.
        """
        digest = hashlib.sha256()
        try:
            with self.path(sha256).open("rb") as reader:
                while piece := reader.read(_PIECE):
                    digest.update(piece)
        except OSError as error:
            raise UserError(f"blob {sha256} is missing", action="restore the registry from a copy") from error
        if digest.hexdigest() != sha256:
            raise UserError(f"blob {sha256} was changed", action="restore the registry from a copy")

    def remove_unnamed(self, named: set[str], *, dry_run: bool) -> list[tuple[str, int]]:
        """Remove blobs that nothing names; returns SHA-256 and bytes of each."""
        unnamed = [path for path in self.folder.glob("??/*") if path.name not in named]
        sizes = sorted((path.name, path.stat().st_size) for path in unnamed)
        if not dry_run:
            for path in unnamed:
                path.unlink()
        return sizes

    def free(self) -> int:
        """Bytes that are free where the blobs lie."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free
