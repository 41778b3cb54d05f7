"""SHA-256 of a file and of the parts in which it is sent."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_PARTS = 10_000
"""Parts that S3 takes of one object."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Digests:
    """A file in parts.

    Attributes:
        path: of the file.
        size: bytes of the file.
        part: bytes of every part but the last.
        sha256: of the whole file.
        parts: SHA-256 of each part; one part is the whole file.
    """

    path: Path
    size: int
    part: int
    sha256: bytes
    parts: tuple[bytes, ...]

    @property
    def whole(self) -> str:
        """The checksum S3 gives of an object that came in one piece: base64 of its SHA-256."""
        return encoded(self.sha256)

    @property
    def composite(self) -> str:
        """The checksum S3 gives of an object that came in parts: SHA-256 over the SHA-256 of its parts, and how many
        they are."""
        return f"{encoded(hashlib.sha256(b''.join(self.parts)).digest())}-{len(self.parts)}"

    def md5(self, index: int) -> str:
        """MD5 of part `index`, hexadecimal: how a server that says no SHA-256 names parts it has; for recognising them,
        not for safety. The part is read."""
        with self.path.open("rb") as file:
            file.seek(index * self.part)
            digest = hashlib.md5(usedforsecurity=False)
            for chunk in _chunks(file.read, self.length(index)):
                digest.update(chunk)
        return digest.hexdigest()

    def length(self, index: int) -> int:
        """Bytes of part `index`, from 0."""
        return min(self.part, self.size - index * self.part)


def encoded(digest: bytes) -> str:
    """As S3 writes checksums."""
    return base64.b64encode(digest).decode("ascii")


def part_size(size: int, wanted: int) -> int:
    """Bytes of a part: `wanted`, or as many more as keep a file of `size` bytes below 10,000 parts. It depends on
    nothing else, so another process cuts the file into the same parts."""
    return max(wanted, -(-size // MOST_PARTS))


def digests(path: Path, wanted: int) -> Digests:
    """Read a file once.

    Args:
        wanted: bytes of a part.
    """
    size = path.stat().st_size
    part = part_size(size, wanted)
    count = max(1, -(-size // part))
    whole = hashlib.sha256()
    sha256: list[bytes] = []
    with path.open("rb") as file:
        for _ in range(count):
            ours = hashlib.sha256() if count > 1 else whole
            for chunk in _chunks(file.read, part):
                whole.update(chunk)
                if ours is not whole:
                    ours.update(chunk)
            sha256.append(ours.digest())
    return Digests(path, size, part, whole.digest(), tuple(sha256))


def _chunks(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    while count > 0:
        chunk = read(min(_CHUNK, count))
        if not chunk:
            return
        count -= len(chunk)
        yield chunk
