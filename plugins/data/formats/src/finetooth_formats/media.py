"""Images, sounds and videos of a row: in parts of a message, or in a column with placeholders in the messages.

Nothing is opened here. A path is relative to the folder of the data file and stays in it; absolute paths, paths that
leave the folder (over `..` or a link) and URLs are refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from finetooth_hooks import DataError, Row
from finetooth_hooks.data.examples import CALLED, PLURALS, Audio, Image, Medium, MediumKind, Video

from finetooth_formats.columns import kind

PART_TYPES: Mapping[str, MediumKind] = {
    "image": "image", "image_url": "image", "input_image": "image",
    "audio": "audio", "audio_url": "audio", "input_audio": "audio",
    "video": "video", "video_url": "video", "input_video": "video",
}  # fmt: skip
"""Kinds of media by the type of a message part."""
HELD = ("url", "path", "bytes", "base64", "data")
"""Keys for the source of an image or sound in a message part, tried in this order after those of its own kind."""
COLUMNS: Mapping[MediumKind, tuple[str, ...]] = {
    "image": ("images", "image"), "audio": ("audios", "audio"), "video": ("videos", "video"),
}  # fmt: skip
PLACEHOLDERS: Mapping[str, MediumKind] = {"<image>": "image", "<audio>": "audio", "<video>": "video"}
"""Placeholders in a text for media of the columns."""
SPELLED = re.compile("|".join(PLACEHOLDERS))

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_DATA_URL = re.compile(r"data:(?:image|audio|video)/[\w.+-]+;base64,", re.IGNORECASE)
_MADE: Mapping[MediumKind, type[Medium]] = {"image": Image, "audio": Audio, "video": Video}


class MediumProblem(ValueError):
    """The fault of an image, sound or video; the message names it."""


class Column:
    """The images, the sounds or the videos that a column of one row holds.

    Args:
        name: of the column; empty finds one by `COLUMNS`.

    Raises:
        DataError: the column holds something else.
    """

    def __init__(self, row: Row, kind: MediumKind, name: str) -> None:
        self.kind = kind
        names = (name,) if name else COLUMNS[kind]
        self.name = next((column for column in names if row.values.get(column) is not None), "")
        value = row.values.get(self.name) if self.name else None
        items = value if isinstance(value, list | tuple) else [] if value is None else [value]
        try:
            self.given = [
                _medium(kind, item, f"{self.name}[{i}]", row.folder)
                for i, item in enumerate(items)
                if name or not (isinstance(item, int | float) or item in ("", None))  # a label, or nothing
            ]
        except MediumProblem as problem:
            raise DataError(row.id, str(problem), action=ACTION) from problem
        self.at = self.begin = 0
        self.taken: set[int] = set()

    def next(self, path: str) -> Medium:
        """The next one.

        Raises:
            MediumProblem: there is none.
        """
        if self.at == len(self.given):
            plural = PLURALS[self.kind]
            none = f"the row has no column {COLUMNS[self.kind][0]}"
            available = f"{self.name} has only {len(self.given)} {plural}" if self.given else none
            raise MediumProblem(f"{path} is {CALLED[self.kind]} without a source, and {available}")
        self.taken.add(self.at)
        self.at += 1
        return self.given[self.at - 1]


class RowMedia:
    """The images, sounds and videos of one row.

    Args:
        row: with its folder.
        columns: by kind, the one that holds them; a kind without a name finds its own by `COLUMNS`.

    Raises:
        DataError: a column holds something else.
    """

    def __init__(self, row: Row, columns: Mapping[MediumKind, str] | None = None) -> None:
        self._row = row
        named = columns or {}
        self._columns = {kind: Column(row, kind, named.get(kind, "")) for kind in COLUMNS}
        self._named: list[Medium] = []

    @property
    def present(self) -> frozenset[MediumKind]:
        """Kinds of which the row has a column."""
        return frozenset(kind for kind, column in self._columns.items() if column.given)

    @property
    def begun(self) -> bool:
        """Something of a column was taken by this reading."""
        return any(column.at > column.begin for column in self._columns.values())

    def reading(self, *, from_first: bool) -> RowMedia:
        """The same for another side of the row, such as the second answer to one prompt: what it places counts as
        placed here too.

        Args:
            from_first: from the first of each column on; else from where this reading stands.
        """
        other = copy(self)
        other._columns = {kind: copy(column) for kind, column in self._columns.items()}
        for column in other._columns.values():
            column.at = column.begin = 0 if from_first else column.at
        return other

    def part(self, path: str, part: Mapping[str, Any]) -> Medium:
        """The medium of a message part; a part without a source gets the next one of the column.

        Raises:
            MediumProblem: it cannot be used, or the column has no further one.
        """
        kind = PART_TYPES[part["type"]]
        sources = [name for name, of in PART_TYPES.items() if of == kind] + list(HELD)
        source = next((name for name in sources if part.get(name) is not None), None)
        if source is None:
            return self.next(kind, path)
        value = part[source]
        if kind == "video" and isinstance(value, list | tuple):
            medium: Medium = _frames(value, part.get("fps"), path, self._row.folder)
        else:
            medium = _medium(kind, {"base64": value} if source in ("base64", "data") else value, path, self._row.folder)
        self._named.append(medium)
        return medium

    def next(self, kind: MediumKind, path: str) -> Medium:
        """The next of a column.

        Raises:
            MediumProblem: there is none.
        """
        return self._columns[kind].next(path)

    def finish(self) -> None:
        """All messages were read.

        Raises:
            DataError: something of a column has no place in them.
        """
        for of, column in self._columns.items():
            rest = [medium for i, medium in enumerate(column.given) if i not in column.taken]
            for medium in self._named:
                if medium in rest:
                    rest.remove(medium)
            if rest:
                count = len(column.given)
                raise DataError(
                    self._row.id,
                    f"{column.name} has {count} {PLURALS[of]}, and the messages place {count - len(rest)}: "
                    f"{rest[0].name} has no place",
                    action=f"write <{of}> in a text, or a part {{type: {of}}}, where it belongs",
                )


ACTION = "put files into the folder of the data file and name them by a path relative to it, or embed them as base64"


def _medium(of: MediumKind, value: Any, path: str, folder: Path | None) -> Medium:
    """An image, sound or video as rows name one: a path, base64, bytes, or an object with one of these.

    Raises:
        MediumProblem: anything else, and every path that is not inside the folder.
    """
    made = _MADE[of]
    if isinstance(value, bytes):
        return made(f"{path} (bytes)", content=value)
    if of == "video" and isinstance(value, list | tuple):  # of a column: a video is the list of its frames
        return _frames(value, None, path, folder)
    if isinstance(value, Mapping):
        if of == "video" and isinstance(value.get("frames"), list | tuple):
            return _frames(value["frames"], value.get("fps"), path, folder)
        content = value.get("bytes")
        if content is not None:
            return (
                made(f"{path} (bytes)", content=content)
                if isinstance(content, bytes)
                else _of_text(made, content, path)
            )
        for key in ("base64", "data"):
            if value.get(key) is not None:
                return _of_text(made, value[key], path)
        named = next((value[key] for key in ("path", "url", of) if value.get(key) is not None), None)
        if named is None:
            raise MediumProblem(f"{path} is an object without path, url, bytes or base64")
        return _medium(of, named, path, folder)
    if not isinstance(value, str):
        raise MediumProblem(f"{path} is {kind(value)}, not {CALLED[of]}")
    if _DATA_URL.match(value):
        return _of_text(made, value.partition(",")[2], path)
    return made(value, path=_inside(value, path, folder))


def _frames(value: Sequence[Any], fps: Any, path: str, folder: Path | None) -> Video:
    """A video as the list of its frames.

    Raises:
            MediumProblem: the list is empty, an entry is not an image, or `fps` is not a positive number.
    """
    if not value:
        raise MediumProblem(f"{path} is a video without frames")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf")):
        raise MediumProblem(f"{path}.fps is {kind(fps)}, not a number above 0")
    frames = []
    for i, item in enumerate(value):
        frame = _medium("image", item, f"{path}[{i}]", folder)
        assert isinstance(frame, Image)
        frames.append(frame)
    return Video(f"{path} ({len(frames)} frames)", frames=tuple(frames), fps=None if fps is None else float(fps))


def _of_text(made: type[Medium], value: Any, path: str) -> Medium:
    """One in base64."""
    if not isinstance(value, str):
        raise MediumProblem(f"{path} is {kind(value)}, not base64")
    text = value.partition(",")[2] if _DATA_URL.match(value) else value
    try:
        return made(f"{path} (base64)", content=base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        raise MediumProblem(f"{path} is not base64: {error}") from error


def _inside(value: str, path: str, folder: Path | None) -> Path:
    """The file a path names.

    Raises:
            MediumProblem: the text is not a path inside the folder; nothing was opened to find out.
    """
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    if not value.strip() or "\0" in value:
        raise MediumProblem(f"{path} is empty" if not value.strip() else f"{path} is not a path: {shown!r}")
    windows = PureWindowsPath(value)
    if _SCHEME.match(value) and not windows.drive:
        raise MediumProblem(f"{path} is a URL, which is never fetched: {shown}")
    if windows.drive or windows.root or PurePosixPath(value).is_absolute() or value.startswith("~"):
        raise MediumProblem(f"{path} is an absolute path: {shown}")
    depth = 0
    for name in windows.parts:  # takes both kinds of slash for separators
        depth += -1 if name == ".." else 1
        if depth < 0:
            raise MediumProblem(f"{path} leaves the data folder: {shown}")
    if folder is None:
        raise MediumProblem(f"{path} is a path, and the rows' source has no folder: {shown}")
    file = folder / value
    if not file.resolve().is_relative_to(folder.resolve()):
        raise MediumProblem(f"{path} leaves the data folder over a link: {shown}")
    return file
