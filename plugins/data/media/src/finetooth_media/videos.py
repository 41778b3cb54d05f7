"""Opening encoded videos: their frames, upright RGB of one size, and how fast they follow each other.

- Frames that a row names one by one come as `finetooth_hooks.data.frames.pack_frames` packs them.
- An animation (GIF, WebP, PNG) is opened by Pillow.
- MP4, MOV, Matroska, WebM and AVI are opened by PyAV, which the extra `media` brings. The kind of container is told to
  it, so that no file can be taken for a playlist that names others.

Which frames are kept is decided before any is decoded, from what the header says.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import DataError, install_command
from finetooth_hooks.data.frames import is_packed, unpack_frames
from PIL import Image, UnidentifiedImageError

from finetooth_media.pictures import open_image, upright

ANIMATED = ("GIF", "WEBP", "PNG")
ACTION = "use another video, or leave it out"
SHOWN_ALIKE = 10
"""Milliseconds for which viewers show a frame of an animation that states less."""

Choose = Callable[[int, float | None, str], Sequence[int]]
"""Which frames of so many are kept, in order; told the frames a second, None where the file does not say, and the name
for messages."""


@dataclass(frozen=True)
class Frames:
    """The selected frames of a video.

    Attributes:
        kept: pictures of one size.
        count: frames it has.
        fps: original frames per second; None if unknown.
    """

    kept: tuple[Image.Image, ...]
    count: int
    fps: float | None


def open_video(content: bytes, name: str, largest: int, choose: Choose) -> Frames:
    """The frames.

    Args:
        content: the encoded file.
        name: for messages.
        largest: pixels of a frame; one that claims more is refused by its header.
        choose: which frames are kept.

    Raises:
        DataError: it is not a video, is cut off, its frames differ in size or are larger, or its reader is not
            installed.
    """
    if not content:
        raise DataError("", f"video {name}: it is empty", action=ACTION)
    container = _container(content)
    if is_packed(content):
        frames = _packed(content, name, largest, choose)
    elif container:
        frames = _contained(content, container, name, largest, choose)
    else:
        frames = _animated(content, name, largest, choose)
    if not frames.kept:
        raise DataError("", f"video {name}: it has no frames", action=ACTION)
    sizes = list(dict.fromkeys(frame.size for frame in frames.kept))
    if len(sizes) > 1:
        (a, b), (c, d) = sizes[:2]
        raise DataError("", f"video {name}: its frames differ in size, {a}x{b} and {c}x{d}", action=ACTION)
    return frames


def _packed(content: bytes, name: str, largest: int, choose: Choose) -> Frames:
    try:
        frames, fps = unpack_frames(content)
    except ValueError as error:
        problem = f"video {name}: it is not an archive of frames: {error}"
        raise DataError("", problem, action="name the files of its frames") from error
    if not frames:
        return Frames((), 0, fps)
    chosen = choose(len(frames), fps, name)
    opened = tuple(open_image(frames[i], f"{name}, frame {i + 1}", largest) for i in chosen)
    return Frames(opened, len(frames), fps)


def _animated(content: bytes, name: str, largest: int, choose: Choose) -> Frames:
    """Of an animation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is ours
            opened = Image.open(io.BytesIO(content), formats=ANIMATED)
        _check_size(opened.width, opened.height, name, largest)
        count = int(getattr(opened, "n_frames", 1))
        durations = []
        for i in range(count):  # headers alone
            opened.seek(i)
            durations.append(max(float(opened.info.get("duration") or 0), SHOWN_ALIKE))
        fps = 1000 * count / sum(durations) if count > 1 else None
        images = []
        for i in choose(count, fps, name):
            opened.seek(i)
            opened.load()
            images.append(upright(opened.copy()))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        problem = (
            f"video {name}: its format cannot be read (readable are frames as images, {', '.join(ANIMATED)}, "
            "MP4, WebM, AVI)"
        )
        raise DataError("", problem, action="save its frames as images and name them in a list") from error
    except Exception as error:  # decoders raise various exceptions for broken bytes
        raise DataError("", f"video {name}: it is cut off or damaged: {error}", action=ACTION) from error
    return Frames(tuple(images), count, fps)


def _container(content: bytes) -> str:
    """FFmpeg's name of the container that the first bytes tell; empty for anything else."""
    if content[4:8] == b"ftyp":
        return "mov"
    if content[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    return "avi" if content[:4] == b"RIFF" and content[8:12] == b"AVI " else ""


def _contained(content: bytes, container: str, name: str, largest: int, choose: Choose) -> Frames:
    """Of a file that PyAV opens."""
    try:
        import av
    except ImportError as error:
        problem = f"video {name}: the package that reads {container} files (PyAV) is not installed"
        action = f"{install_command('finetooth[media]')}, or save its frames as images and name them in a list"
        raise DataError("", problem, action=action) from error
    library: Any = av
    try:
        with library.open(io.BytesIO(content), format=container) as file:
            if not file.streams.video:
                raise DataError("", f"video {name}: it has no pictures", action=ACTION)
            stream = file.streams.video[0]
            if stream.codec_context is None:
                raise DataError("", f"video {name}: it is cut off, or of a kind that PyAV does not know", action=ACTION)
            _check_size(stream.codec_context.width, stream.codec_context.height, name, largest)
            rate = stream.average_rate
            fps = float(rate) if rate else None
            count = int(stream.frames) or sum(packet.pts is not None for packet in file.demux(stream))
            file.seek(0)
            wanted = set(choose(count, fps, name)) if count else set()
            images = []
            for i, frame in enumerate(file.decode(stream)):
                if i in wanted:
                    images.append(frame.to_image().convert("RGB"))
                if i == max(wanted, default=-1):
                    break
    except library.error.FFmpegError as error:
        problem = f"video {name}: it is cut off or damaged: {error.strerror}"
        raise DataError("", problem, action=ACTION) from error
    if len(images) < len(wanted):
        problem = f"video {name}: it is cut off: {len(images)} of {len(wanted)} frames were there"
        raise DataError("", problem, action=ACTION)
    return Frames(tuple(images), count, fps)


def _check_size(width: int, height: int, name: str, largest: int) -> None:
    if width * height > largest:
        raise DataError(
            "",
            f"video {name}: {width} x {height} pixels, more than data.processor.largest={largest:,}",
            action="scale it down, or raise the bound",
        )
