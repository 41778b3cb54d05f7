"""Checks of processors of images."""

from __future__ import annotations

from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Image
from finetooth_hooks.testing.checks import EntryCase, check_for, expect, fail

_BROKEN = {"an empty file": b"", "a text": b"not a picture", "a cut header": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"}


@check_for("processor")
def broken_images_are_refused(case: EntryCase) -> None:
    """What is no image is a DataError with the image's name, before anything is asked of the model."""
    processor = case.build()
    for what, content in _BROKEN.items():
        called = f"place(Image('broken.png', content={what}))"
        try:
            found = processor.place(Image("broken.png", content=content))
        except DataError as error:
            expect("broken.png" in str(error), called, str(error), "the name of the image in the message")
        else:
            fail(called, found, "a DataError")
    missing = case.folder / "missing.png"
    try:
        found = processor.place(Image("missing.png", path=missing))
    except DataError as error:
        expect("missing.png" in str(error), "place of a missing file", str(error), "the name of the image")
    else:
        fail("place of a missing file", found, "a DataError")
