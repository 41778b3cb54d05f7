"""Images and sound in rows whose format reads text only."""

from __future__ import annotations

from finetooth_hooks.data.examples import LeftOut, Row, examples_in, media_of
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Format

COLUMNS = {
    "image": "image", "images": "image",
    "audio": "audio", "audios": "audio", "sound": "audio",
    "video": "video", "videos": "video",
}  # fmt: skip
"""The media of columns with these names."""


def unread_media(row: Row, format: Format) -> str:
    """The column of a row with pictures, sound or video that the format does not read; empty without one.

    A row that the format refuses gets the format's own error.
    """
    filled = [name for name in COLUMNS if row.values.get(name)]
    if not filled:
        return ""
    try:
        read = examples_in(format.read(row))
        kinds = {medium.kind for example in read if not isinstance(example, LeftOut) for medium in media_of(example)}
    except DataError:
        return ""
    return next((name for name in filled if COLUMNS[name] not in kinds), "")
