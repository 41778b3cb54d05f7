"""Images, sounds and videos among tokens: data, prepared rows, and what becomes of rows where they do not fit."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Conversation, DataError, Datum, ImageChunk, Message, VideoChunk
from finetooth_hooks.data.examples import Audio, Image, Placed, Rendered, RenderedMedium, Video, media_of
from finetooth_hooks.data.frames import unpack_frames
from finetooth_hooks.data.preparation import Limit
from finetooth_rows.preparing import MEDIUM_CUT, finish, render_rows
from finetooth_rows.storage.token_rows import TokenRows
from finetooth_toolbox.messages.media import chunks, pack, unpack

PNG = b"\x89PNG\r\n\x1a\n one"
JPEG = b"\xff\xd8\xff two"


def example(*images: Image) -> Conversation:
    return Conversation(
        (Message("user", "look", media=tuple(Placed(0, image) for image in images)), Message("assistant", "yes"))
    )


@pytest.fixture
def images(tmp_path: Path) -> tuple[Image, Image]:
    (tmp_path / "a.png").write_bytes(PNG)
    return (
        Image("a.png", tmp_path / "a.png", sha256=sha256(PNG).hexdigest()),
        Image("inline", content=JPEG, sha256=sha256(JPEG).hexdigest()),
    )


def test_a_datum_splits_at_its_images() -> None:
    datum = Datum.from_tokens(
        range(10), [0] * 8 + [1, 1], media=[(2, ImageChunk(PNG, "png", 3)), (6, ImageChunk(JPEG, "jpeg", 2))]
    )
    assert [len(chunk) for chunk in datum.input] == [2, 3, 1, 2, 1]
    assert datum.placeholder_tokens.tolist() == list(range(9)) and datum.targets.tolist() == list(range(1, 10))
    assert [(start, chunk.data) for start, chunk in datum.media] == [(2, PNG), (6, JPEG)]
    with pytest.raises(ValueError, match="holds an image"):
        _ = datum.tokens


@pytest.mark.parametrize("places", [[(7, 3)], [(2, 3), (4, 2)]])
def test_images_that_overlap_or_reach_the_end_are_refused(places: list[tuple[int, int]]) -> None:
    media = [(start, ImageChunk(PNG, "png", length)) for start, length in places]
    with pytest.raises(ValueError, match="an image at"):
        Datum.from_tokens(range(10), media=media)


def test_a_chunk_without_placeholders_says_so() -> None:
    with pytest.raises(ValueError, match="without placeholder tokens"):
        _ = Datum((ImageChunk(PNG, "png", 2),), np.zeros(2, np.int64)).placeholder_tokens


def test_packing_gives_back_what_was_packed(images: tuple[Image, Image]) -> None:
    frames = Video("clip", frames=images, fps=2.5)
    media = [images[0], Audio("a.wav", content=b"RIFF", sha256="a"), frames, Video("b.gif", Path("b.gif")), images[1]]
    given = [RenderedMedium(4 * at, 2, medium, f"size {at}") for at, medium in enumerate(media)]
    assert unpack(pack(given)) == tuple(given) and pack([]) == b"" and unpack(b"") == ()


def test_frames_are_one_file_whose_own_files_are_watched(images: tuple[Image, Image], tmp_path: Path) -> None:
    video = Video("clip", frames=images, fps=2.5)
    assert unpack_frames(video.read()) == ([PNG, JPEG], 2.5) and video.read() == video.read()
    assert video.known(video.read()).files == {tmp_path / "a.png": sha256(PNG).hexdigest()}
    ((start, chunk),) = chunks([RenderedMedium(3, 4, video)], "row")
    assert (start, type(chunk), len(chunk)) == (3, VideoChunk, 4)
    (tmp_path / "a.png").write_bytes(PNG + b"!")
    with pytest.raises(DataError, match=r"^row: image a.png: .* changed since the row was prepared"):
        chunks([RenderedMedium(3, 4, video)], "row")


def render(found: Conversation, places: tuple[tuple[int, int], ...] = ((1, 4), (6, 2))) -> Rendered:
    made = tuple(RenderedMedium(*at, image) for at, image in zip(places, media_of(found), strict=True))
    return Rendered(tuple(range(12)), (0.0,) * 8 + (1.0,) * 4, media=made)


def test_prepared_rows_read_their_images_when_they_are_asked_for(images: tuple[Image, Image]) -> None:
    portion, tally = render_rows([("x:1", example(*images))], render, Limit(11, "drop"))
    rows = finish(TokenRows([portion]), tally, "train", Limit(11, "drop")).data
    assert [chunk.data for _, chunk in rows[0].media] == [PNG, JPEG]
    assert [chunk.format for _, chunk in rows[0].media] == ["png", "jpeg"]
    assert [[image.length for image in of_row] for of_row in rows.media] == [[4, 2]]
    images[0].path.write_bytes(b"another")  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"x:1: image a.png: .*changed since"):
        _ = rows[0]
    images[0].path.unlink()  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"x:1: image a.png: it cannot be read"):
        _ = rows[0]


def test_rows_without_images_hold_nothing_of_them() -> None:
    portion, _ = render_rows([("x:1", example())], lambda found: render(found, ()), Limit(11, "drop"))
    assert portion.media == () and isinstance(TokenRows([portion])[0].tokens, np.ndarray)


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [(11, [4, 2]), (10, [4, 2]), (9, [4, 2]), (8, [4, 2]), (7, "cut"), (6, "nothing"), (3, "cut")],
)
def test_truncation_never_cuts_an_image(images: tuple[Image, Image], longest: int, lengths: Any) -> None:
    portion, tally = render_rows([("x:1", example(*images))], render, Limit(longest, "truncate"))
    if isinstance(lengths, str):
        assert list(tally.dropped) == [MEDIUM_CUT if lengths == "cut" else "nothing to train on after truncation"]
    else:
        assert [len(chunk) for _, chunk in TokenRows([portion])[0].media] == lengths


def test_a_renderer_that_leaves_images_out_is_refused(images: tuple[Image, Image]) -> None:
    def forgetful(found: Conversation) -> Rendered:
        return Rendered((1, 2, 3), (0.0, 1.0, 1.0))

    _, tally = render_rows([("x:1", example(*images))], forgetful, None)  # type: ignore[arg-type]
    assert "x:1: it has 2 images, which the renderer cannot write" in str(tally.unusable.first[0])


def test_an_image_at_the_end_is_refused(images: tuple[Image, Image]) -> None:
    _, tally = render_rows([("x:1", example(images[0]))], lambda found: render(found, ((8, 4),)), None)
    assert "an image is the last" in str(tally.unusable.first[0])
