"""Opening videos: frames of one size, or a refusal that names the reason."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, install_command
from finetooth_hooks.data.frames import pack_frames
from finetooth_media.videos import Frames, open_video
from PIL import Image

LARGEST = 10_000


def picture(value: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.full((side, side, 3), value, np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


def opened(content: bytes, *kept: int) -> Frames:
    return open_video(content, "v", LARGEST, lambda count, fps, name: kept or range(count))


def shades(frames: Frames) -> list[int]:
    return [int(np.asarray(frame).mean().round()) for frame in frames.kept]


PACKED = pack_frames([encoded(picture(value)) for value in (10, 20, 30)], 2.5)
ANIMATED = encoded(
    picture(10), "PNG", save_all=True, append_images=[picture(20), picture(30)], duration=[100, 300, 200]
)


def test_frames_come_in_order_with_their_rate() -> None:
    found = opened(PACKED)
    assert (shades(found), found.count, found.fps) == ([10, 20, 30], 3, 2.5)
    found = opened(ANIMATED)
    assert (shades(found), found.count, found.fps) == ([10, 20, 30], 3, 5.0)


@pytest.mark.parametrize("content", [PACKED, ANIMATED], ids=["packed", "animated"])
def test_only_what_is_chosen_is_kept(content: bytes) -> None:
    found = opened(content, 0, 2)
    assert (shades(found), found.count) == ([10, 30], 3)


def compressed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0", encoded(picture(1)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"no video", "its format cannot be read"),
        (PACKED[:-40], "not an archive of frames"),
        (ANIMATED[: len(ANIMATED) // 2], "cut off or damaged"),
        (compressed(), "its entries are compressed"),
        (pack_frames([], None), "no frames"),
        (pack_frames([encoded(picture(1)), encoded(picture(1, 8))], None), "differ in size, 16x16 and 8x8"),
        (pack_frames([encoded(picture(1, 200))], None), "more than data.processor.largest"),
        (encoded(picture(1, 200)), "more than data.processor.largest"),
        (pack_frames([b"no picture"], None), "frame 1: it is not an image"),
    ],
    ids=range(10),
)
def test_what_is_no_whole_video_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        opened(content)
    assert "v" in str(error.value) and "\n" not in str(error.value)


def test_a_film_is_pyavs(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for value in (40, 120, 200):
            frame = av.VideoFrame.from_image(picture(value, 32))
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    content = file.getvalue()
    found = opened(content)
    np.testing.assert_allclose(shades(found), [40, 120, 200], atol=4)
    assert (found.count, found.fps) == (3, 5.0)
    np.testing.assert_allclose(shades(opened(content, 2)), [200], atol=4)
    with pytest.raises(DataError, match="cut off"):
        opened(content[: len(content) // 2])
    monkeypatch.setitem(sys.modules, "av", None)
    remedy = re.escape(install_command("finetooth[media]"))
    with pytest.raises(DataError, match=rf"PyAV\) is not installed .{remedy}"):
        opened(content)
