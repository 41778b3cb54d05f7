"""Images of a prepared row as bytes: where they stand, which they are, and their content where no file holds it.

Pixels are never kept: an image that lies in a file is its path and the hash of its bytes, and is read again when the
row is trained.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from finetooth_hooks.datum import ImageChunk
from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Image, RenderedImage

_LENGTH = struct.Struct("<Q")
_MAGIC: tuple[tuple[bytes, Literal["png", "jpeg"]], ...] = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))


def pack(images: Sequence[RenderedImage]) -> bytes:
    """The images of a row; nothing if it has none."""
    if not images:
        return b""
    header = [
        [
            found.start,
            found.length,
            found.width,
            found.height,
            found.image.name,
            None if found.image.path is None else str(found.image.path),
            len(found.image.content),
            found.image.sha256,
        ]
        for found in images
    ]
    text = json.dumps(header).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *(found.image.content for found in images)])


def unpack(content: bytes) -> tuple[RenderedImage, ...]:
    """From `pack`."""
    if not content:
        return ()
    begin = _LENGTH.size + _LENGTH.unpack_from(content)[0]
    found = []
    for start, length, width, height, name, path, size, digest in json.loads(content[_LENGTH.size : begin]):
        image = Image(name, None if path is None else Path(path), content[begin : begin + size], digest)
        found.append(RenderedImage(start, length, image, width, height))
        begin += size
    return tuple(found)


def chunks(images: Sequence[RenderedImage], row: str) -> list[tuple[int, ImageChunk]]:
    """The images of a row, read, for `Datum.from_tokens`.

    Raises:
        DataError: a file is gone, or not the one that was prepared.
    """
    made = []
    for found in images:
        try:
            content = found.image.read()
        except DataError as error:
            raise DataError(row, error.problem, action=error.action) from error
        made.append((found.start, ImageChunk(content, image_format(content), found.length)))
    return made


def image_format(content: bytes) -> Literal["png", "jpeg", ""]:
    """What an encoded image is, by its first bytes."""
    return next((name for magic, name in _MAGIC if content.startswith(magic)), "")
