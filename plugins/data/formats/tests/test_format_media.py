"""Images, sounds and videos in rows: where they stand, how they may be named, what is refused before it is opened."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Row
from finetooth_hooks.data.examples import Audio, Task, Video, media_of

Make = Callable[..., Any]
PNG = b"\x89PNG\r\n\x1a\n and so on"
BASE64 = base64.b64encode(PNG).decode()


def asked(*content: Any, folder: Path | None = Path("data"), **columns: Any) -> Row:
    messages = [
        {"role": "user", "content": content[0] if len(content) == 1 and isinstance(content[0], str) else list(content)},
        {"role": "assistant", "content": "A cat."},
    ]
    return Row("x:1", {"messages": messages, **columns}, folder)


def placed(example: Conversation) -> tuple[str, list[tuple[int, str]]]:
    message = example.messages[0]
    return message.content, [(one.at, one.medium.path.as_posix() if one.medium.path else "") for one in message.media]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a/b.png"},
        {"type": "image", "path": "a/b.png"},
        {"type": "image", "url": "a/b.png"},
        {"type": "image_url", "image_url": {"url": "a/b.png"}},
        {"type": "image_url", "image_url": "a/b.png"},
        {"type": "input_image", "image_url": "a/b.png"},
        {"type": "image", "image": {"path": "a/b.png", "bytes": None}},
        {"type": "image", "image": "./a/c/../b.png"},
    ],
)
def test_a_path_is_relative_to_the_data_file(format_of: Make, part: dict[str, Any], tmp_path: Path) -> None:
    example = format_of("chat").read(asked(part, {"type": "text", "text": "What?"}, folder=tmp_path))
    assert media_of(example)[0].path.resolve() == (tmp_path / "a/b.png").resolve()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "base64": BASE64},
        {"type": "image", "bytes": PNG},
        {"type": "image", "image": {"bytes": PNG, "path": "a.png"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
        {"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}"},
        {"type": "image", "data": f"data:image/png;base64,{BASE64}"},
    ],
)
def test_content_in_the_row_needs_no_file(format_of: Make, part: dict[str, Any]) -> None:
    (image,) = media_of(format_of("chat").read(asked(part, {"type": "text", "text": "What?"}, folder=None)))
    assert image.path is None and image.content == PNG


def test_images_stand_between_the_texts_in_order(format_of: Make) -> None:
    row = asked(
        {"type": "image", "image": "1.png"},
        {"type": "text", "text": "one", "train": True},
        {"type": "image", "image": "2.png"},
        {"type": "image", "image": "3.png"},
        {"type": "text", "text": " two"},
    )
    example = format_of("chat").read(row)
    assert placed(example) == ("one two", [(0, "data/1.png"), (3, "data/2.png"), (3, "data/3.png")])
    assert [(w.start, w.stop) for w in example.messages[0].weights] == [(0, 3)]


@pytest.mark.parametrize("column", [["1.png", "2.png"], [{"path": "1.png"}, {"path": "2.png", "bytes": None}]])
def test_a_column_fills_placeholders(format_of: Make, column: list[Any]) -> None:
    wanted = [(0, "data/1.png"), (4, "data/2.png")]
    by_text = format_of("chat").read(asked("<image>Look<image> here", images=column))
    assert placed(by_text) == ("Look here", wanted)
    parts = ({"type": "image"}, {"type": "text", "text": "Look"}, {"type": "image"}, {"type": "text", "text": " here"})
    assert placed(format_of("chat").read(asked(*parts, images=column))) == ("Look here", wanted)
    with_nulls = ({"type": "image", "image": None, "text": None}, *parts[1:])  # as tables fill absent fields
    assert placed(format_of("chat").read(asked(*with_nulls, images=column))) == ("Look here", wanted)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "audio": "a/b.wav"},
        {"type": "audio", "audio_url": "a/b.wav"},
        {"type": "audio_url", "audio_url": {"url": "a/b.wav"}},
        {"type": "audio", "path": "a/b.wav"},
        {"type": "audio", "audio": {"path": "a/b.wav", "bytes": None}},
    ],
)
def test_a_sound_is_a_file_beside_the_data(format_of: Make, part: dict[str, Any], tmp_path: Path) -> None:
    (found,) = media_of(format_of("chat").read(asked(part, {"type": "text", "text": "What?"}, folder=tmp_path)))
    assert isinstance(found, Audio) and found.path == tmp_path / "a/b.wav"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
        {"type": "audio", "base64": BASE64},
        {"type": "audio", "audio": f"data:audio/wav;base64,{BASE64}"},
    ],
)
def test_a_sound_may_be_in_the_row(format_of: Make, part: dict[str, Any]) -> None:
    (found,) = media_of(format_of("chat").read(asked(part, {"type": "text", "text": "What?"}, folder=None)))
    assert isinstance(found, Audio) and found.content == PNG


def test_a_video_is_a_file_or_its_frames(format_of: Make) -> None:
    frames = {"type": "video", "video": ["1.png", "2.png"], "fps": 4}
    row = asked(frames, {"type": "text", "text": "What?"}, {"type": "video", "video": "a.gif"})
    first, second = media_of(format_of("chat").read(row))
    assert isinstance(first, Video) and isinstance(second, Video)
    assert [frame.path for frame in first.frames] == [Path("data/1.png"), Path("data/2.png")] and first.fps == 4.0
    assert second.path == Path("data/a.gif") and second.frames == () and second.fps is None


def test_columns_of_several_kinds_fill_their_own_placeholders(format_of: Make) -> None:
    columns = {"images": ["1.png"], "audio": "1.wav", "videos": [["2.png", "3.png"]]}
    (message, _) = format_of("chat").read(asked("<audio>a<image>b<video>", **columns)).messages
    assert message.content == "ab" and [(one.at, one.medium.kind) for one in message.media] == [
        (0, "audio"),
        (1, "image"),
        (2, "video"),
    ]
    sound = asked("<audio> or <image>?", audio="1.wav")  # the row has no images
    (message, _) = format_of("chat").read(sound).messages
    assert message.content == " or <image>?" and [one.medium.kind for one in message.media] == ["audio"]


def test_the_placeholder_is_text_where_there_is_no_column(format_of: Make) -> None:
    assert placed(format_of("chat").read(asked("What is <image>?"))) == ("What is <image>?", [])


@pytest.mark.parametrize(
    ("content", "columns", "problem"),
    [
        ("<image><image>", {"images": ["1.png"]}, "images has only 1"),
        ("What?", {"images": ["1.png"]}, "images has 1 images, and the messages place 0: 1.png has no place"),
        ({"type": "image"}, {}, "is an image without a source, and the row has no column images"),
        ({"type": "image", "image": 7}, {}, r"messages\[0\].content\[0\] is a number, not an image"),
        ({"type": "image", "base64": "%"}, {}, "is not base64"),
        ({"type": "image", "image": " "}, {}, "is empty"),
        ({"type": "file", "file": "a.pdf"}, {}, "is a part of type 'file'; only text, images, audio and video can be"),
        ({"type": "audio"}, {}, "is a sound without a source, and the row has no column audios"),
        ({"type": "audio", "audio": 7}, {}, r"messages\[0\].content\[0\] is a number, not a sound"),
        ({"type": "input_audio", "input_audio": {"data": "%", "format": "wav"}}, {}, "is not base64"),
        ("What?", {"audio": "1.wav"}, "audio has 1 sounds, and the messages place 0: 1.wav has no place"),
        ("<video><video>", {"videos": [["1.png"]]}, "videos has only 1"),
        ({"type": "video", "video": []}, {}, "is a video without frames"),
        ({"type": "video", "video": ["1.png"], "fps": 0}, {}, r"fps is a number, not a number above 0"),
        ({"type": "video", "video": ["1.png", 7]}, {}, r"content\[0\]\[1\] is a number, not an image"),
    ],
)
def test_what_cannot_be_placed_is_named(format_of: Make, content: Any, columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"^x:1: .*{problem}"):
        format_of("chat").read(asked(content, **columns))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/etc/hostname", "an absolute path"),
        ("C:\\a.png", "an absolute path"),
        ("C:a.png", "an absolute path"),
        ("\\\\server\\share\\a.png", "an absolute path"),
        ("~/a.png", "an absolute path"),
        ("../a.png", "leaves the data folder"),
        ("a/../../b.png", "leaves the data folder"),
        ("a\\..\\..\\b.png", "leaves the data folder"),
        ("file:///etc/hostname", "a URL, which is never fetched"),
        ("http://127.0.0.1:9/x.png", "a URL, which is never fetched"),
        ("HTTPS://example.org/x.png", "a URL, which is never fetched"),
        ("s3://bucket/x.png", "a URL, which is never fetched"),
        ("data:text/html,x", "a URL, which is never fetched"),
        ("a\0b", "not a path"),
    ],
)
def test_a_path_out_of_the_folder_is_refused_unopened(
    format_of: Make, path: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, opened = Path.resolve, open

    def only_others(real: Callable[..., Any]) -> Callable[..., Any]:
        """Fails for whoever reads rows; other threads of this process have files of their own to look for."""
        reading = threading.get_ident()

        def called(*given: Any, **more: Any) -> Any:
            assert threading.get_ident() != reading, f"it was looked for: {given}"
            return real(*given, **more)

        return called

    with monkeypatch.context() as patched:
        patched.setattr(Path, "resolve", only_others(resolve))
        patched.setattr("builtins.open", only_others(opened))
        refused(format_of, path, problem)


def refused(format_of: Make, path: str, problem: str) -> None:
    """By its name alone, wherever it stands."""
    with pytest.raises(DataError, match=problem):
        format_of("chat").read(asked({"type": "image", "image": path}))
    with pytest.raises(DataError, match=problem):
        format_of("chat").read(asked("<image>", images=[path]))
    for part in ({"type": "audio", "audio": path}, {"type": "video", "video": [path]}):
        with pytest.raises(DataError, match=problem):
            format_of("chat").read(asked(part))


def test_a_link_out_of_the_folder_is_refused(format_of: Make, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "data" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"leaves the data folder over a link"):
        format_of("chat").read(asked({"type": "image", "image": "a.png"}, folder=tmp_path / "data"))


def test_without_a_folder_no_path_can_be_named(format_of: Make) -> None:
    with pytest.raises(DataError, match=r"the rows' source has no folder"):
        format_of("chat").read(asked({"type": "image", "image": "a.png"}, folder=None))


def test_prompts_and_tasks_take_images_too(format_of: Make) -> None:
    columns = {"prompt": "What is <image>?", "image": "a.png"}
    row = Row("x:1", {**columns, "completion": "A cat."}, Path("data"))
    assert placed(format_of("prompt_completion").read(row)) == ("What is ?", [(8, "data/a.png")])
    task = format_of("task").read(Row("x:1", columns, Path("data")))
    assert isinstance(task, Task) and [image.path for image in media_of(task)] == [Path("data/a.png")]


def test_every_shared_path_that_leaves_the_folder_is_refused(format_of: Make, rows_of: Callable[..., Any]) -> None:
    for row in rows_of("bad/path_traversal_images.jsonl"):
        with pytest.raises(DataError, match=r"leaves the data folder|absolute path|never fetched"):
            format_of("chat").read(Row(row.id, row.values, Path("data")))
