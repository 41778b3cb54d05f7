"""Images of a row: in parts of a message, or in a column with placeholders in the messages.

Nothing is opened here. A path is relative to the folder of the data file and stays in it; absolute paths, paths that
leave the folder (over `..` or a link) and URLs are refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from copy import copy
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from finetooth_hooks import DataError, Row
from finetooth_hooks.examples import Image

from finetooth_formats.columns import kind

PART_TYPES = ("image", "image_url", "input_image")
SOURCES = ("image", "image_url", "url", "path", "bytes", "base64", "data")
"""Where a part of a message says which image it is, in this order."""
COLUMNS = ("images", "image")
PLACEHOLDER = "<image>"
"""What stands in a text where an image of the column belongs."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


class ImageProblem(ValueError):
    """What is wrong with one image; the message names it."""


class RowImages:
    """The images of one row.

    Args:
        row: with its folder.
        column: with its images; empty finds `images` or `image`.

    Raises:
        DataError: the column holds something else than images.
    """

    def __init__(self, row: Row, column: str = "") -> None:
        self._row = row
        names = (column,) if column else COLUMNS
        self._column = next((name for name in names if row.values.get(name) is not None), "")
        value = row.values.get(self._column) if self._column else None
        items = value if isinstance(value, list | tuple) else [] if value is None else [value]
        try:
            self._given = [
                _image(item, f"{self._column}[{i}]", row.folder)
                for i, item in enumerate(items)
                if column or not (isinstance(item, int | float) or item in ("", None))  # a label, or nothing
            ]
        except ImageProblem as problem:
            raise DataError(row.id, str(problem), action=ACTION) from problem
        self._at = self._from = 0
        self._taken: set[int] = set()
        self._named: list[Image] = []

    @property
    def present(self) -> bool:
        """The row has a column with images."""
        return bool(self._given)

    @property
    def begun(self) -> bool:
        """An image of the column was taken by this reading."""
        return self._at > self._from

    def reading(self, *, anew: bool) -> RowImages:
        """The same images for another side of the row, such as the second answer to one prompt: what it places counts
        as placed here too.

        Args:
            anew: from the first of the column on; else from where this reading stands.
        """
        other = copy(self)
        other._at = other._from = 0 if anew else self._at
        return other

    def part(self, path: str, part: Mapping[str, Any]) -> Image:
        """The image of a part of a message; one without a source is the next of the column.

        Raises:
            ImageProblem: it cannot be used, or the column has no further one.
        """
        source = next((name for name in SOURCES if part.get(name) is not None), None)
        if source is None:
            return self.next(path)
        value = part[source]
        image = _image({"base64": value} if source in ("base64", "data") else value, path, self._row.folder)
        self._named.append(image)
        return image

    def next(self, path: str) -> Image:
        """The next image of the column.

        Raises:
            ImageProblem: there is none.
        """
        if self._at == len(self._given):
            held = f"{self._column} has only {len(self._given)}" if self._given else "the row has no column images"
            raise ImageProblem(f"{path} is an image without a source, and {held}")
        self._taken.add(self._at)
        self._at += 1
        return self._given[self._at - 1]

    def finish(self) -> None:
        """All messages were read.

        Raises:
            DataError: an image of the column has no place in them.
        """
        rest = [image for i, image in enumerate(self._given) if i not in self._taken]
        for image in self._named:
            if image in rest:
                rest.remove(image)
        if rest:
            raise DataError(
                self._row.id,
                f"{self._column} has {len(self._given)} images, and the messages place {len(self._given) - len(rest)}: "
                f"{rest[0].name} has no place",
                action=f"write {PLACEHOLDER} in a text, or a part {{type: image}}, where it belongs",
            )


ACTION = "put images into the folder of the data file and name them by a path relative to it, or embed them as base64"


def _image(value: Any, path: str, folder: Path | None) -> Image:
    """An image as rows name one: a path, base64, bytes, or an object with one of these.

    Raises:
        ImageProblem: anything else, and every path that is not inside the folder.
    """
    if isinstance(value, bytes):
        return Image(f"{path} (bytes)", content=value)
    if isinstance(value, Mapping):
        content = value.get("bytes")
        if content is not None:
            return Image(f"{path} (bytes)", content=content) if isinstance(content, bytes) else _of_text(content, path)
        if value.get("base64") is not None:
            return _of_text(value["base64"], path)
        named = next((value[key] for key in ("path", "url", "image") if value.get(key) is not None), None)
        if named is None:
            raise ImageProblem(f"{path} is an object without path, url, bytes or base64")
        return _image(named, path, folder)
    if not isinstance(value, str):
        raise ImageProblem(f"{path} is {kind(value)}, not an image")
    if _DATA_URL.match(value):
        return _of_text(value.partition(",")[2], path)
    return Image(value, path=_inside(value, path, folder))


def _of_text(value: Any, path: str) -> Image:
    """An image in base64."""
    if not isinstance(value, str):
        raise ImageProblem(f"{path} is {kind(value)}, not base64")
    text = value.partition(",")[2] if _DATA_URL.match(value) else value
    try:
        return Image(f"{path} (base64)", content=base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        raise ImageProblem(f"{path} is not base64: {error}") from error


def _inside(value: str, path: str, folder: Path | None) -> Path:
    """The file a path names.

    Raises:
        ImageProblem: it is no path inside the folder; nothing was opened to find out.
    """
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    if not value.strip() or "\0" in value:
        raise ImageProblem(f"{path} is empty" if not value.strip() else f"{path} is no path: {shown!r}")
    windows = PureWindowsPath(value)
    if _SCHEME.match(value) and not windows.drive:
        raise ImageProblem(f"{path} is a URL, which is never fetched: {shown}")
    if windows.drive or windows.root or PurePosixPath(value).is_absolute() or value.startswith("~"):
        raise ImageProblem(f"{path} is an absolute path: {shown}")
    depth = 0
    for name in windows.parts:  # takes both kinds of slash for separators
        depth += -1 if name == ".." else 1
        if depth < 0:
            raise ImageProblem(f"{path} leaves the data folder: {shown}")
    if folder is None:
        raise ImageProblem(f"{path} is a path, and the rows' source has no folder: {shown}")
    found = folder / value
    if not found.resolve().is_relative_to(folder.resolve()):
        raise ImageProblem(f"{path} leaves the data folder over a link: {shown}")
    return found
