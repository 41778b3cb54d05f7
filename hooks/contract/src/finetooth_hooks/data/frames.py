"""Frames of a video as one file: a ZIP archive that holds the encoded pictures as they are, in order.

Nothing in it is compressed, so that it unpacks to no more than it has.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every entry, so that the same frames give the same bytes."""


def pack_frames(frames: Sequence[bytes], fps: float | None) -> bytes:
    """The archive.

    Args:
        frames: encoded pictures.
        fps: frames a second, written into the comment of the archive.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i, content in enumerate(frames):
            archive.writestr(zipfile.ZipInfo(f"{i:06d}", EPOCH), content)
        archive.comment = b"" if fps is None else f"fps={fps!r}".encode()
    return file.getvalue()


def is_packed(content: bytes) -> bool:
    """Whether it is a ZIP archive, by its first bytes."""
    return content.startswith((b"PK\x03\x04", b"PK\x05\x06"))  # the second begins an empty one


def unpack_frames(content: bytes) -> tuple[list[bytes], float | None]:
    """The inverse of `pack_frames`.

    Raises:
        ValueError: it is not such an archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise ValueError("its entries are compressed")
            comment = archive.comment.decode("ascii", "replace")
            fps = float(comment.removeprefix("fps=")) if comment.startswith("fps=") else None
            return [archive.read(entry) for entry in entries], fps
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error
