"""The source `jsonl`: one JSON object a line, every line checked before the first row is handed out."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.context import Context

from finetooth_jsonlines.lines import BrokenLine, parse

SHOWN = 5
"""How many broken lines an error spells out before it only counts."""

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

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            DataError: the file is missing, empty, not UTF-8 or not JSON lines; names every broken line, the first few
                with the reason.
        """
        name = self._path.as_posix()
        if self._path.is_dir():
            raise DataError(name, "it is a folder", action="name a file in it")
        try:
            with self._open() as file:
                rows, broken, lines = self._read(file, name)
        except FileNotFoundError as error:
            raise DataError(name, "the file does not exist", action="check data.train and data.eval") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(name, f"the gzip data are cut off or damaged ({error})", action="fetch it again") from error
        except OSError as error:
            raise DataError(
                name, f"it cannot be read: {error.strerror or error}", action="check its permissions"
            ) from error
        if broken:
            raise self._broken(name, broken, len(rows))
        if not rows:
            empty = "the file is empty" if not lines else "the file holds only blank lines"
            raise DataError(name, empty, action="check that it was written to the end")
        yield from rows

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

    def _read(self, file: BinaryIO, name: str) -> tuple[list[Row], list[BrokenLine], int]:
        """Good rows, broken lines, and how many lines there are."""
        rows: list[Row] = []
        broken: list[BrokenLine] = []
        begun = offset = number = 0
        for number, line in enumerate(file, start=1):  # the count outlives the loop
            content = line
            if number == 1:
                content = self._without_mark(line, name)
            if content.strip():
                begun += 1
                if begun == 1:
                    _check_first(content, name)
                try:
                    rows.append(Row(f"{name}:{number}", parse(content, number, offset + len(line) - len(content))))
                except BrokenLine as problem:
                    broken.append(problem)
            offset += len(line)
        return rows, broken, number

    def _without_mark(self, line: bytes, name: str) -> bytes:
        encoding = FOREIGN_ENCODINGS.get(line[:2])
        if encoding:
            raise DataError(name, f"it is {encoding}, not UTF-8", action="convert it to UTF-8")
        if not line.startswith(BYTE_ORDER_MARK):
            return line
        self._note(f"{name} begins with a byte order mark, which was skipped")
        return line[len(BYTE_ORDER_MARK) :]

    def _broken(self, name: str, broken: list[BrokenLine], good: int) -> DataError:
        shown = "; ".join(f"line {problem.line}: {problem.problem}" for problem in broken[:SHOWN])
        more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        share = f"{len(broken)} broken {'line' if len(broken) == 1 else 'lines'}, {good} good"
        return DataError(name, f"{share}: {shown}{more}", action=broken[0].action)


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
