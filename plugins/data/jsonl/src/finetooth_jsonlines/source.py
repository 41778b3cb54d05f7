"""The source `jsonl`: one JSON object a line, read a portion at a time; every broken line is counted and named."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Portion
from finetooth_hooks.tally import SHOWN, Problems

from finetooth_jsonlines.lines import BrokenLine, parse

PORTION_BYTES = 300_000
"""About how much is read at a time."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"
FOREIGN_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class JsonLinesOptions(Options):
    """Options of `jsonl`."""

    path: str
    """The file, relative to the current directory; gzipped if its name ends with `.gz`."""


def build(options: JsonLinesOptions, context: Context) -> JsonLines:
    return JsonLines(Path(options.path), context.note)


class JsonLines:
    """Rows of one file; the id of a row is `FILE:LINE`, blank lines counted.

    Args:
        note: told about what was read in an unusual way.
    """

    def __init__(self, path: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self._path, self._note = path, note

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            DataError: the file is missing, empty, not UTF-8 or not JSON lines. Broken lines are named after the last
                good row, the first few with the reason.
        """
        broken, good = Problems(), 0
        for portion in self.portions():
            for item in self.read(portion):
                if isinstance(item, Row):
                    good += 1
                    yield item
                else:
                    broken.add(item)
        if broken.count:
            raise self.refusal(broken, good)

    def portions(self) -> Iterator[Portion]:
        """Whole lines; `place` is the number of the first one and the offset of its first byte in the file.

        Raises:
            DataError: the file is missing, cut off, empty, or of another kind.
        """
        name = self._path.as_posix()
        if self._path.is_dir():
            raise DataError(name, "it is a folder", action="name a file in it")
        try:
            with self._open() as file:
                yield from self._cut(file, name)
        except FileNotFoundError as error:
            raise DataError(name, "the file does not exist", action="check data.train and data.eval") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(name, f"the gzip data are cut off or damaged ({error})", action="fetch it again") from error
        except OSError as error:
            raise DataError(
                name, f"it cannot be read: {error.strerror or error}", action="check its permissions"
            ) from error

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """Rows of the lines of a portion, and an error for each broken line."""
        name = self._path.as_posix()
        number, offset = portion.place
        for line in portion.content.split(b"\n"):
            if line.strip():
                try:
                    yield Row(f"{name}:{number}", parse(line, number, offset))
                except BrokenLine as broken:
                    yield DataError(f"{name}:{number}", broken.problem, action=broken.action)
            number += 1
            offset += len(line) + 1

    def refusal(self, broken: Problems, good: int) -> DataError:
        """The error for a file with broken lines: names the first few."""
        lines = [
            (error.where.rpartition(":")[2], error.problem.removeprefix(f"{error.where}: ")) for error in broken.first
        ]
        shown = "; ".join(f"line {line}: {problem}" for line, problem in lines)
        more = f"; and {broken.count - SHOWN} more" if broken.count > SHOWN else ""
        share = f"{broken.count} broken {'line' if broken.count == 1 else 'lines'}, {good} good"
        return DataError(self._path.as_posix(), f"{share}: {shown}{more}", action=broken.first[0].action)

    def _open(self) -> BinaryIO:
        """The file's bytes, unpacked if need be."""
        zipped = self._path.suffix.lower() == ".gz"
        if not zipped:
            return self._path.open("rb")
        with self._path.open("rb") as file:
            start = file.read(2)
        if start and start != GZIP_MAGIC:
            raise DataError(
                self._path.as_posix(),
                "it is named .gz but holds no gzip data",
                action="rename it to .jsonl, or gzip it",
            )
        return cast(BinaryIO, gzip.open(self._path, "rb"))

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
        encoding = FOREIGN_ENCODINGS.get(line[:2])
        if encoding:
            raise DataError(name, f"it is {encoding}, not UTF-8", action="convert it to UTF-8")
        if not line.startswith(BYTE_ORDER_MARK):
            return line
        self._note(f"{name} begins with a byte order mark, which was skipped")
        return line[len(BYTE_ORDER_MARK) :]


def _check_first(content: bytes, name: str) -> None:
    """Refuse the two other ways to lay out JSON in a file, which would fail on every line.

    Raises:
        DataError: the file is one array, or one object spread over lines.
    """
    start = content.strip()
    if start.startswith(b"["):
        raise DataError(
            name,
            "this is a JSON array, not JSON lines",
            action="rename it to .json (source datasets reads it), or write one object a line",
        )
    if start == b"{":
        raise DataError(
            name,
            "its objects are spread over several lines, which is not JSON lines",
            action="write each object on one line",
        )
