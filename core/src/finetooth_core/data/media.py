"""Pictures and sound beside a text that is all a format reads."""

from __future__ import annotations

from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import LeftOut, Row, examples_in, images_of
from finetooth_hooks.protocols import Format

PICTURES = ("image", "images")
OTHERS = ("audio", "audios", "sound", "video", "videos")


def unread_media(row: Row, format: Format) -> str:
    """The column of a row that holds pictures, sound or video which the format does not read; empty if there is none.

    A row that is refused says itself what is wrong with it.
    """
    filled = [name for name in (*PICTURES, *OTHERS) if row.values.get(name)]
    if not filled:
        return ""
    try:
        read = examples_in(format.read(row))
        pictured = any(bool(images_of(one)) for one in read if not isinstance(one, LeftOut))
    except DataError:
        return ""
    return next((name for name in filled if name in OTHERS or not pictured), "")
