"""Checks of processors of images, sounds and videos."""

from __future__ import annotations

from finetooth_hooks.data.examples import Audio, Image, Medium, Video
from finetooth_hooks.errors import DataError

from finetooth_kit.checks import EntryCase, check_for, expect, fail

_BROKEN = {"an empty file": b"", "a text": b"not a picture, not a sound"}
_CUT: dict[type[Medium], bytes] = {
    Image: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    Audio: b"RIFF\x24\x00\x00\x00WAVEfmt ",
    Video: b"PK\x03\x04",
}
"""Headers that end too early."""


@check_for("processor")
def broken_media_are_refused(case: EntryCase) -> None:
    """A file that is not an image, sound or video is a DataError with its name, before the model is called."""
    processor = case.build()
    for made, cut in _CUT.items():
        for what, content in {**_BROKEN, "a cut header": cut}.items():
            called = f"place({made.__name__}('broken', content={what}))"
            try:
                placed = processor.place(made("broken", content=content))
            except DataError as error:
                expect("broken" in str(error), called, str(error), "its name in the message")
            else:
                fail(called, placed, "a DataError")
        missing = case.folder / "missing"
        called = f"place of a missing file as {made.kind}"
        try:
            placed = processor.place(made("missing", path=missing))
        except DataError as error:
            expect("missing" in str(error), called, str(error), "its name")
        else:
            fail(called, placed, "a DataError")
