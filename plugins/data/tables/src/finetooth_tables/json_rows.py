"""A `.json` file: an array of objects, or an object that holds one. Its rows are read one by one."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from finetooth_hooks import DataError, Row
from finetooth_hooks.bases import SourceBase
from finetooth_hooks.data.problems import SHOWN
from finetooth_toolbox.files.packed import open_bytes, without_mark
from finetooth_toolbox.text.strict_json import JsonProblem, decode_from, type_name

READ_BYTES = 1 << 16
BLANK = " \t\r\n"
NUMBER_ENDS = 4
"""Characters of which one tells where a number ends: `1.`, `1e+` may be its beginning."""
VALUE_LIMIT = 1 << 28
"""Characters of the longest row: a quote that is never closed is found before a large file is in memory."""


class JsonTable(SourceBase):
    """Rows of one file; the id of a row is `FILE:row NUMBER`, from 1.

    Args:
        field: the key under which the rows are; None takes the file's array, or the one list of its object.
        note: receives notes about unusual forms of files.
    """

    def __init__(self, path: Path, field: str | None = None, note: Callable[[str], None] = lambda text: None) -> None:
        self._path, self._field, self._note = path, field, note
        self.name = path.as_posix()

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def rows(self) -> Iterator[Row]:
        """The objects of the file's list.

        Raises:
            DataError: the file is missing, empty, not UTF-8, not JSON, or holds no list of objects; other items are
                named after the last row.
        """
        with open_bytes(self._path) as file:
            text = _Text(file, self.name, self._note)
            start = text.peek()
            if not start:
                raise DataError(self.name, "the file is empty", action="check that it was written to the end")
            if start == "[":
                if self._field is not None:
                    raise self._no_field("the file is an array, without keys")
                items = text.items()
            elif start == "{":
                items = self._under_key(text)
            else:
                raise DataError(
                    self.name, f"{type_name(text.value())}, not a list of rows", action="write an array of objects"
                )
            yield from self._objects(items)
            self._check_end(text)

    def _objects(self, items: Iterator[Any]) -> Iterator[Row]:
        wrong: list[str] = []
        number = 0
        for number, item in enumerate(items, start=1):
            if isinstance(item, dict):
                yield Row(f"{self.name}:row {number}", item)
            else:
                wrong.append(f"row {number} is {type_name(item)}, not an object")
        if wrong:
            more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise DataError(self.name, "; ".join(wrong[:SHOWN]) + more, action="write one object a row")
        if not number:
            raise DataError(self.name, "its list is empty", action="check that it was written to the end")

    def _under_key(self, text: _Text) -> Iterator[Any]:
        """The items of the one list of an object, or of that under the key asked for."""
        seen: set[str] = set()
        lists: list[str] = []
        for key in text.object_keys():
            if key in seen:
                raise DataError(self.name, f"the key {key!r} occurs twice", action="rename one")
            seen.add(key)
            if text.peek() != "[" or (self._field is not None and key != self._field):
                text.value()
            elif lists:
                raise DataError(
                    self.name,
                    f"several lists: {lists[0]}, {key}",
                    action="say with field: KEY which one holds the rows",
                )
            else:
                lists.append(key)
                yield from text.items()
        if not lists and self._field is not None:
            raise self._no_field(f"its keys are {', '.join(sorted(seen)[:10]) or 'none'}")
        if not lists:
            self._check_end(text)
            raise DataError(
                self.name,
                f"an object without a list of rows (its keys: {', '.join(sorted(seen)[:10]) or 'none'})",
                action="write an array of objects",
            )

    def _no_field(self, why: str) -> DataError:
        return DataError(self.name, f"no list under {self._field!r}: {why}", action="check field")

    def _check_end(self, text: _Text) -> None:
        if not text.peek():
            return
        raise DataError(f"{self.name}:{text.line}", "text after the end of the JSON", action="remove it")


class _Text:
    """JSON text read piece by piece: never more of it is held than the value at hand and some kilobytes."""

    def __init__(self, file: BinaryIO, name: str, note: Callable[[str], None]) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._buffer, self._at, self._lines, self._offset = "", 0, 1, 0
        self._ended = False
        start, marked = without_mark(file.read(READ_BYTES), name)
        if marked:
            note(f"{name} begins with a byte order mark, which was skipped")
            self._offset = 3
        self._take(start)

    @property
    def line(self) -> int:
        """The line at which it is read."""
        return self._lines + self._buffer.count("\n", 0, self._at)

    def peek(self) -> str:
        """The next character that is not a blank; empty at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in BLANK:
                self._at += 1
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            self._more()

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = decode_from(self._buffer, self._at)
            except JsonProblem as error:
                if error.unfinished and not self._ended:
                    self._more()
                    continue
                raise self._broken(error) from error
            rest = self._buffer[end : end + NUMBER_ENDS]
            if not self._ended and len(rest) < NUMBER_ENDS and rest[:1] not in tuple(f"{BLANK},:]}}"):
                self._more()  # a number might continue
                continue
            self._at = end
            return value

    def items(self) -> Iterator[Any]:
        """The items of the array that begins here."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._expect(",]") == "]":
                return

    def object_keys(self) -> Iterator[str]:
        """The keys of the object that begins here; the value of each is to be read before the next is asked for."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            if self.peek() != '"':
                raise self._unexpected("a key in quotes")
            key = str(self.value())
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return

    def _expect(self, characters: str) -> str:
        character = self.peek()
        if not character or character not in characters:
            raise self._unexpected(" or ".join(characters))
        self._at += 1
        return character

    def _unexpected(self, expected: str) -> DataError:
        problem = f"not JSON: {expected} expected" if self.peek() else "not complete JSON (unexpected end)"
        return DataError(f"{self._name}:{self.line}", problem, action="fix the file")

    def _broken(self, error: JsonProblem) -> DataError:
        if error.position is not None:
            self._at = error.position
            problem = error.problem.rpartition(" at character ")[0] or error.problem
        else:
            problem = error.problem
        return DataError(f"{self._name}:{self.line}", problem, action="fix the file")

    def _more(self) -> None:
        """Read on, twice as much as is held, so that a long value is not read too often."""
        self._lines += self._buffer.count("\n", 0, self._at)
        self._buffer, self._at = self._buffer[self._at :], 0
        if len(self._buffer) > VALUE_LIMIT:
            raise DataError(
                f"{self._name}:{self.line}", f"a value of more than {VALUE_LIMIT:,} characters", action="fix the file"
            )
        content = self._file.read(max(READ_BYTES, 2 * len(self._buffer)))
        self._take(content)

    def _take(self, content: bytes) -> None:
        pending = len(self._decoder.getstate()[0])
        try:
            self._buffer += self._decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            place = self._offset - pending + error.start
            line = self._lines + self._buffer.count("\n") + error.object[: error.start].count(b"\n")
            raise DataError(
                f"{self._name}:{line}",
                f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {place}",
                action="convert the file to UTF-8",
            ) from error
        self._offset += len(content)
        self._ended = not content
