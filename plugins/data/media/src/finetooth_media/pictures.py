"""Opens encoded images: refuses incomplete pictures and unreasonable sizes, and converts every kind to upright RGB.

- The size is read from the header and bounded before any pixel is decoded.
- EXIF orientation is applied, so that width and height are those a viewer shows.
- A palette is looked up; grey becomes three equal channels; 16 bits a channel become 8 by their upper half.
- What is transparent is laid over white.
- A file with several frames (an animation) is refused: which of them is meant cannot be known.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from finetooth_hooks import DataError
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Supported kinds of images; Pillow knows more, some of which start other programs."""
ACTION = "use another image, or leave it out"


def open_image(content: bytes, name: str, largest: int) -> Image.Image:
    """The picture, upright, RGB, 8 bits a channel.

    Args:
        content: the encoded file.
        name: for messages.
        largest: pixels; one that claims more is refused by its header.

    Raises:
        DataError: it is not an image, is cut off, has several frames, or is larger.
    """
    if not content:
        raise DataError("", f"image {name}: it is empty", action=ACTION)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is ours
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError("", f"image {name}: it is not an image ({', '.join(FORMATS)})", action=ACTION) from error
    except Image.DecompressionBombError as error:
        raise DataError("", f"image {name}: {error}".split(",")[0], action=ACTION) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError("", f"image {name}: its header is broken: {error}", action=ACTION) from error
    width, height = opened.size
    if width * height > largest:
        raise DataError(
            "",
            f"image {name}: {width} x {height} pixels, more than data.processor.largest={largest:,}",
            action="scale it down, or raise the bound",
        )
    try:
        frames = getattr(opened, "n_frames", 1)
        if frames > 1:
            raise DataError("", f"image {name}: it has {frames} frames", action="save one of them, or call it a video")
        opened.load()
        return upright(opened)
    except DataError:
        raise
    except Exception as error:  # decoders raise various exceptions for broken bytes
        raise DataError("", f"image {name}: it is cut off or damaged: {error}", action=ACTION) from error


def upright(image: Image.Image) -> Image.Image:
    """The same picture as a viewer shows it, with three channels of 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
