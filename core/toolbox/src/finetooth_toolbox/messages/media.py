"""Pictures, sounds and videos of a prepared row as bytes: positions, identities, and their content if it is not in a
file.

Decoded numbers are never stored. Of a file, only its path and hash are stored, and it is read again for training.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetooth_hooks.data.datum import AudioChunk, ImageChunk, MediumChunk, VideoChunk
from finetooth_hooks.data.examples import Audio, Image, Medium, MediumKind, RenderedMedium, Video
from finetooth_hooks.errors import DataError

MEDIA: Mapping[MediumKind, type[Medium]] = {"image": Image, "audio": Audio, "video": Video}
CHUNKS: Mapping[MediumKind, type[MediumChunk]] = {"image": ImageChunk, "audio": AudioChunk, "video": VideoChunk}
_LENGTH = struct.Struct("<Q")
_RIFF, _WAVE = b"RIFF", b"WAVE"


def pack(media: Sequence[RenderedMedium]) -> bytes:
    """Pack the media of a row; empty if it has none."""
    if not media:
        return b""
    contents: list[bytes] = []
    header = [[placed.start, placed.length, placed.size, _record_of(placed.medium, contents)] for placed in media]
    text = json.dumps(header).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *contents])


def _record_of(medium: Medium, contents: list[bytes]) -> dict[str, Any]:
    """A medium as JSON; its bytes go to `contents`."""
    contents.append(medium.content)
    record: dict[str, Any] = {
        "kind": medium.kind,
        "name": medium.name,
        "path": None if medium.path is None else str(medium.path),
        "bytes": len(medium.content),
        "sha256": medium.sha256,
    }
    if isinstance(medium, Video):
        record |= {"frames": [_record_of(frame, contents) for frame in medium.frames], "fps": medium.fps}
    return record


def unpack(content: bytes) -> tuple[RenderedMedium, ...]:
    """From `pack`."""
    if not content:
        return ()
    begin = _LENGTH.size + _LENGTH.unpack_from(content)[0]

    def read(record: Mapping[str, Any]) -> Medium:
        nonlocal begin
        own = content[begin : begin + record["bytes"]]
        begin += record["bytes"]
        more = {"frames": tuple(map(read, record["frames"])), "fps": record["fps"]} if record["kind"] == "video" else {}
        path = None if record["path"] is None else Path(record["path"])
        return MEDIA[record["kind"]](record["name"], path, own, record["sha256"], **more)

    header = json.loads(content[_LENGTH.size : begin])
    return tuple(RenderedMedium(start, length, read(record), size) for start, length, size, record in header)


def chunks(media: Sequence[RenderedMedium], row: str) -> list[tuple[int, MediumChunk]]:
    """The media of a row, read, for `Datum.from_tokens`.

    Raises:
        DataError: a file is missing, or has changed since the preparation.
    """
    made = []
    for placed in media:
        try:
            content = placed.medium.read()
        except DataError as error:
            raise DataError(row, error.problem, action=error.action) from error
        kind = placed.medium.kind
        made.append((placed.start, CHUNKS[kind](content, format_of(kind, content), placed.length)))
    return made


def format_of(kind: MediumKind, content: bytes) -> str:
    """The format of an encoded picture or sound, by its first bytes; empty if only the decoder can tell."""
    if kind == "image":
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return "png"
        return "jpeg" if content.startswith(b"\xff\xd8\xff") else ""
    return "wav" if kind == "audio" and content[:4] == _RIFF and content[8:12] == _WAVE else ""
