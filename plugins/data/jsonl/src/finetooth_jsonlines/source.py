"""The source `jsonl`: one JSON object a line, read a portion at a time; every broken line is counted and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Portion, Source
from finetooth_rows.portions import PortionedRows
from finetooth_toolbox.files.json_layout import is_array
from finetooth_toolbox.files.packed import open_bytes, without_mark

from finetooth_jsonlines.lines import BrokenLine, parse

PORTION_BYTES = 300_000
"""About how much is read at a time."""


class JsonLinesOptions(Options):
    """Options of `jsonl`."""

    path: str
    """The file, relative to the current directory; decompressed if its name ends with `.gz` or `.zst`."""


def build(options: JsonLinesOptions, context: Context) -> Source:
    path = Path(options.path)
    if path.suffix != ".json" and is_array(path):
        context.note(f"{path.as_posix()} holds a JSON array, not what its name says, and is read as an array")
        array: Source = context.build("source", {"name": "tables", "path": options.path})
        return array
    return JsonLines(path, context.note)


class JsonLines(PortionedRows):
    """Rows of one file; the id of a row is `FILE:LINE`, blank lines counted.

    Args:
        note: receives notes about unusual forms of files.
    """

    noun = ("line", "lines")

    def __init__(self, path: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self._path, self._note = path, note
        self.name = path.as_posix()

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def portions(self) -> Iterator[Portion]:
        """Whole lines; `place` is the number of the first one and the offset of its first byte in the file.

        Raises:
            DataError: the file is missing, cut off, empty, or of another kind.
        """
        with open_bytes(self._path) as file:
            yield from self._cut(file, self.name)

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """Rows of the lines of a portion, and an error for each broken line."""
        name = self.name
        number, offset = portion.place
        for line in portion.content.split(b"\n"):
            if line.strip():
                try:
                    yield Row(f"{name}:{number}", parse(line, number, offset))
                except BrokenLine as broken:
                    yield DataError(f"{name}:{number}", broken.problem, action=broken.action)
            number += 1
            offset += len(line) + 1

    def _cut(self, file: BinaryIO, name: str) -> Iterator[Portion]:
        number, offset, begun = 1, 0, False
        while lines := file.readlines(PORTION_BYTES):
            content = b"".join(lines)
            skipped = 0
            if number == 1:
                skipped = len(content)
                content = self._without_mark(content, name)
                skipped -= len(content)
            if not begun and content.strip():
                begun = True
                _check_first(content.lstrip().partition(b"\n")[0], name)
            yield Portion(content, (number, offset + skipped))
            number += len(lines)
            offset += skipped + len(content)
        if not begun:
            empty = "the file is empty" if number == 1 else "the file holds only blank lines"
            raise DataError(name, empty, action="check that it was written to the end")

    def _without_mark(self, line: bytes, name: str) -> bytes:
        line, marked = without_mark(line, name)
        if marked:
            self._note(f"{name} begins with a byte order mark, which was skipped")
        return line


def _check_first(content: bytes, name: str) -> None:
    """Refuse another way to lay out JSON in a file, which would fail on every line.

    Raises:
        DataError: objects are spread over lines.
    """
    start = content.strip()
    if start == b"{":
        raise DataError(
            name,
            "its objects are spread over several lines, which is not JSON lines",
            action="write each object on one line",
        )
