"""Opening images: upright RGB, or a refusal that names the reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError
from finetooth_media.pictures import open_image
from PIL import Image

LARGEST = 10_000_000


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(open_image(content, "a.png", LARGEST))


def gradient(width: int = 6, height: int = 4) -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def test_rgb_stays_as_it_is() -> None:
    np.testing.assert_array_equal(pixels(encoded(gradient())), np.asarray(gradient()))


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation: int, turns: int) -> None:
    """Orientation 6 says: turn it by 90 degrees clockwise to see it upright (EXIF 2.32, 4.6.4)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(encoded(gradient(), exif=exif))
    np.testing.assert_array_equal(found, np.rot90(np.asarray(gradient()), turns))


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert pixels(encoded(image))[0].tolist() == [[10, 20, 30], [200, 100, 50]]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_three_equal_channels(mode: str) -> None:
    found = pixels(encoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert(mode)))
    assert found.tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_sixteen_bits_become_eight_by_their_upper_half() -> None:
    found = pixels(encoded(Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], np.uint16))))
    assert found[0, :, 0].tolist() == [0, 0x12, 255]


def test_what_is_transparent_lies_over_white() -> None:
    values = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], np.uint8)
    clear, solid, half = pixels(encoded(Image.fromarray(values, "RGBA")))[0].tolist()
    assert clear == [255, 255, 255] and solid == [10, 20, 30] and all(abs(value - 127) <= 1 for value in half)


def test_other_formats_are_decoded() -> None:
    for name in ("JPEG", "BMP", "TIFF", "GIF"):
        assert pixels(encoded(gradient(), name)).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"not an image at all", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (encoded(gradient(200, 200))[:400], "cut off or damaged"),
        (encoded(gradient(64, 64), "JPEG")[:-200], "cut off or damaged"),
    ],
)
def test_what_is_no_whole_image_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=f"^image a.png: .*{problem}"):
        open_image(content, "a.png", LARGEST)


def test_frames_are_not_chosen_among() -> None:
    content = encoded(gradient(), "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4))])
    with pytest.raises(DataError, match="it has 2 frames"):
        open_image(content, "a.gif", LARGEST)


@pytest.mark.parametrize("side", [4_000, 60_000])
def test_a_huge_one_is_refused_by_its_header(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"image a\.png: .*(pixels, more than|exceeds limit)"):
            open_image(content, "a.png", LARGEST)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.slow
def test_a_class_that_merges_patches_has_an_image_be_whole_squares_of_them() -> None:
    """As Pixtral's with `spatial_merge_size`: height and width are multiples of 28, not of 14."""
    pixtral = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    from finetooth_media.image_reader import ImageReader, ProcessorMarkup

    def said(made: Any, index: int) -> str:
        return "[IMG]" * int(np.prod(np.array(made["image_sizes"][index]) // 28))

    spelled = SimpleNamespace(convert_ids_to_tokens=lambda ids: ["[IMG]"])
    whole = SimpleNamespace(
        image_token="[IMG]", image_token_ids=[7], unused_input_names=(), tokenizer=spelled, patch_size=14,
        spatial_merge_size=2, replace_image_token=said,
    )  # fmt: skip
    processor = pixtral.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14)
    reader = ImageReader(processor, ProcessorMarkup(whole, {}), 10**6)
    file = encoded(Image.new("RGB", (100, 70)))
    (text, _, _), _ = reader.place(file, "a.png")
    assert reader.inputs([file])["pixel_values"].shape[-2:] == (84, 112)
    assert text == "[IMG]" * 12
