"""Names of weights at a server."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path


def checksum(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    digest = sha256()
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def weights_name(epoch: str, version: int, folder: Path) -> str:
    """`ft-EPOCH-VERSION-CHECKSUM`.

    Args:
        epoch: random, one per training process.
        version: optimizer steps done.
        folder: with the files.
    """
    return f"ft-{epoch}-{version}-{checksum(folder)[:12]}"
