"""Text tables: fields between delimiters, quoted where they must be. Every field stays the text in the file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from finetooth_hooks import DataError, Row
from finetooth_hooks.protocols import Portion
from finetooth_rows.portions import PortionedRows
from finetooth_toolbox.files.packed import without_mark
from finetooth_toolbox.text.column_names import check_columns

from finetooth_tables.encodings import UTF_8, open_utf8

PORTION_BYTES = 300_000
FIELD_LIMIT = 1 << 26
"""Characters of the longest field: a quote that is never closed is found before it has swallowed a large file."""
FIX = "fix or remove the broken lines"
RECODE = "save the file as UTF-8, or set encoding: NAME, such as cp1252"
OTHER_DELIMITERS = ";\t|"

# the module's own limit, 131,072 characters, would refuse long documents; there is one for the whole process
csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))

HEADER_BYTES, BLANK_LINES = 1 << 16, 10
"""Bounds of where a header is looked for."""


@dataclass
class _Lines:
    """Lines as text for the csv module, and the bytes of those taken since they were last asked for."""

    file: BinaryIO
    taken: list[bytes] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.taken.append(line)
            yield line.decode("utf-8", "surrogateescape")

    def take(self) -> bytes:
        """The bytes of the lines since the last call."""
        content = b"".join(self.taken)
        self.taken.clear()
        return content


def delimiter_of(path: Path, usual: str, encoding: str = UTF_8) -> str:
    """What stands between the fields of a file's header: the usual one, unless that makes one column of a header in
    which another delimiter occurs. Of a file that cannot be read the usual one; its reader says what is wrong."""
    try:
        with open_utf8(path, encoding) as file:
            lines = (file.readline(HEADER_BYTES).decode("utf-8", "replace").strip() for _ in range(BLANK_LINES))
            header = next(filter(None, lines), "")
        columns = {d: len(next(csv.reader([header], delimiter=d), [])) for d in (usual, *OTHER_DELIMITERS)}
    except (DataError, csv.Error):
        return usual
    return next((d for d, count in columns.items() if count > 1), usual)


class DelimitedTable(PortionedRows):
    """Rows of a file with a header; the id of a row is `FILE:LINE`, that of its first line.

    A portion is the header and some whole records, so that its reader needs no more than its bytes.

    Args:
        delimiter: one character.
        encoding: encoding of the file's text.
        note: receives notes about unusual forms of files.
    """

    noun = ("line", "lines")

    def __init__(
        self, path: Path, delimiter: str = ",", note: Callable[[str], None] = lambda text: None, encoding: str = UTF_8
    ) -> None:
        self._path, self._delimiter, self._note, self._encoding = path, delimiter, note, encoding
        self.name = path.as_posix()

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def portions(self) -> Iterator[Portion]:
        """Whole records; `place` is the number of the first line after the header, the offset of its first byte in
        the file, and how many bytes the header takes.

        Raises:
            DataError: the file is missing, cut off, empty, not UTF-8 in its header, or has no rows.
        """
        with open_utf8(self._path, self._encoding) as file:
            yield from self._cut(file)

    def _cut(self, file: BinaryIO) -> Iterator[Portion]:
        start, marked = without_mark(file.readline(), self.name)
        if marked:
            self._note(f"{self.name} begins with a byte order mark, which was skipped")
        lines = _Lines(file)
        texts = iter(lines)
        if start:
            lines.taken.append(start)
            texts = _after(start.decode("utf-8", "surrogateescape"), texts)
        reader = csv.reader(texts, delimiter=self._delimiter, strict=True)
        head = self._header(reader, lines)
        number, offset = reader.line_num + 1, 3 * marked + len(head)
        content: list[bytes] = []
        size = rows = 0
        last = False
        while not last:
            try:
                rows += bool(next(reader))
            except StopIteration:
                last = True
            except csv.Error as error:  # reading the portion reports it
                rows += 1
                last = _inside_a_quote(error)
            content.append(lines.take())
            size += len(content[-1])
            if size >= PORTION_BYTES or (last and size):
                yield Portion(head + b"".join(content), (number, offset, len(head)))
                number, offset = reader.line_num + 1, offset + size
                content, size = [], 0
        if not rows:
            raise DataError(self.name, "no rows, only a header", action="check that it was written to the end")

    def _header(self, reader: Iterator[list[str]], lines: _Lines) -> bytes:
        """The bytes up to and with the first record, which names the columns."""
        try:
            names = next((record for record in reader if record), None)
        except csv.Error as error:
            raise DataError(f"{self.name}:1", f"the header: {_reason(error)}", action=FIX) from error
        head = lines.take()
        if names is None:
            problem = "no rows, only blank lines" if head else "the file is empty"
            raise DataError(self.name, problem, action="check that it was written to the end")
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name}:1", f"the header is {_not_utf8(error, 0)}", action=RECODE) from error
        check_columns(names, f"{self.name}:1")
        other = next((d for d in OTHER_DELIMITERS if d in names[0]), None) if len(names) == 1 else None
        if other is not None and self._delimiter not in OTHER_DELIMITERS:
            raise DataError(
                f"{self.name}:1",
                f"one column, named {names[0]!r}",
                action=f"set delimiter: {other!r} if that stands between its fields",
            )
        return head

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """Rows of the records of a portion, and an error for each that is broken."""
        number, offset, length = portion.place
        head, body = portion.content[:length], portion.content[length:]
        names = next(record for record in self._reader(head.splitlines(keepends=True)) if record)
        lines = io.BytesIO(body).readlines()
        clean = _is_utf8(body)
        reader = self._reader(lines)
        done = 0
        while True:
            problem, record = "", list[str]()
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = _reason(error)
            where = f"{self.name}:{number + done}"
            taken = lines[done : reader.line_num]
            done = reader.line_num
            action = FIX
            if not clean and (foreign := _first_foreign_byte(b"".join(taken), offset)):
                problem, action = foreign, RECODE
            elif not problem and record and len(record) != len(names):
                problem = f"{len(record)} field{'s' * (len(record) != 1)}, {len(names)} expected"
            offset += sum(map(len, taken))
            if problem:
                yield DataError(where, problem, action=action)
            elif record:
                yield Row(where, dict(zip(names, record, strict=True)))

    def _reader(self, lines: list[bytes]) -> Any:
        texts = (line.decode("utf-8", "surrogateescape") for line in lines)
        return csv.reader(texts, delimiter=self._delimiter, strict=True)


def _after(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _inside_a_quote(error: csv.Error) -> bool:
    """Whether the reader stopped inside a quote, so that nothing after it can be taken for a record."""
    return "unexpected end" in str(error) or "field limit" in str(error)


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote is not closed"
    if "field limit" in text:
        return f"a quote is not closed within {FIELD_LIMIT:,} characters"
    if "new-line character" in text:
        return "a carriage return inside the line"
    return f"text after a closing quote ({text})" if "expected after" in text else text


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _first_foreign_byte(content: bytes, offset: int) -> str:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_utf8(error, offset)
    return ""


def _not_utf8(error: UnicodeDecodeError, offset: int) -> str:
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset + error.start}"
