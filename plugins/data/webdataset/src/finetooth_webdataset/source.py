"""The source `webdataset`: the files of one key, side by side in a tar shard, are one row."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from finetooth_hooks import DataError, Options, Row
from finetooth_hooks.protocols import Portion
from finetooth_rows.portions import PortionedRows
from finetooth_toolbox.files.packed import open_bytes
from finetooth_toolbox.text.column_names import check_columns
from finetooth_toolbox.text.strict_json import JsonProblem, decode

from finetooth_webdataset.archive import Member, members
from finetooth_webdataset.shards import shards

PORTION_BYTES = 300_000
TEXTS = frozenset({"txt", "text", "md", "caption", "html"})
NUMBERS = frozenset({"cls", "index", "count"})
KEY = "__key__"
FIX = "fix or remove the file"
_SIZES = struct.Struct("<IQ")


class WebDatasetOptions(Options):
    """Options of `webdataset`."""

    path: str
    """The shard, or a pattern for several: `shard-{000..003}.tar`, `{train,extra}.tar`, `shards/*.tar`."""


def build(options: WebDatasetOptions) -> ShardRows:
    return ShardRows(options.path)


class ShardRows(PortionedRows):
    """Rows of shards; the id of a row is `SHARD:KEY`.

    A row has a column for each of its files, named by the file's ending: text (`txt`), numbers (`cls`), JSON, and bytes
    for all else, such as images. A `json` file that holds an object gives a column for each of its keys instead.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._found: tuple[Path, ...] | None = None
        self.name = pattern

    def files(self) -> tuple[Path, ...]:
        """All shards, in order."""
        if self._found is None:
            self._found = tuple(shards(self._pattern))
        return self._found

    def portions(self) -> Iterator[Portion]:
        """Files of whole rows, laid end to end, each after the lengths of its name and content and its name; `place` is
        the number of the shard.

        Raises:
            DataError: a shard is missing, empty, cut off or damaged; or a file in it belongs to no row.
        """
        for number, path in enumerate(self.files()):
            name = path.as_posix()
            content: list[bytes] = []
            size = rows = 0
            with open_bytes(path) as file:
                for _, group in groupby(members(file, name), key=lambda member: _key(member.name, name)):
                    rows += 1
                    for member in group:
                        coded = member.name.encode("utf-8", "surrogateescape")
                        content += [_SIZES.pack(len(coded), len(member.content)), coded, member.content]
                        size += len(member.content)
                    if size >= PORTION_BYTES:
                        yield Portion(b"".join(content), (number,))
                        content, size = [], 0
            if content:
                yield Portion(b"".join(content), (number,))
            if not rows:
                raise DataError(name, "the archive is empty", action="check that it was written to the end")

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """The rows of a portion, and an error for each that cannot be read."""
        name = self.files()[portion.place[0]].as_posix()
        for key, group in groupby(_unpack(portion.content), key=lambda member: _key(member.name, name)):
            id_ = f"{name}:{key}"
            try:
                yield Row(id_, _row(id_, key, list(group)))
            except DataError as error:
                yield error


def _key(member: str, shard: str) -> str:
    """Path and name of a file up to the first dot of the name."""
    folder, slash, name = member.rpartition("/")
    key, _, ending = name.partition(".")
    if not key or not ending:
        why = "it has no ending" if key else "its name begins with a dot"
        raise DataError(f"{shard}:{member}", f"{why}, so it belongs to no row", action="pack only KEY.ENDING files")
    return f"{folder}{slash}{key}"


def _unpack(content: bytes) -> Iterator[Member]:
    place = 0
    while place < len(content):
        name, size = _SIZES.unpack_from(content, place)
        start = place + _SIZES.size + name
        coded = content[place + _SIZES.size : start]
        place = start + size
        yield Member(coded.decode("utf-8", "surrogateescape"), content[start:place])


def _row(id_: str, key: str, files: list[Member]) -> dict[str, Any]:
    values: dict[str, Any] = {KEY: key}
    for file in files:
        column = file.name.rpartition("/")[2].partition(".")[2].lower()
        value = _value(id_, column, file.content)
        columns = value if column == "json" and isinstance(value, dict) else {column: value}
        check_columns([*values, *columns], id_, FIX)
        values |= columns
    return values


def _value(id_: str, column: str, content: bytes) -> Any:
    """The value of a file, by its ending."""
    ending = column.rpartition(".")[2]
    if ending not in TEXTS and ending not in NUMBERS and ending != "json":
        return content
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            id_, f".{column} is not UTF-8: byte 0x{content[error.start]:02x} at {error.start}", action=FIX
        ) from error
    if ending in TEXTS:
        return text
    if ending in NUMBERS:
        try:
            return int(text)
        except ValueError as error:
            raise DataError(id_, f".{column} is {text.strip()[:30]!r}, not a whole number", action=FIX) from error
    try:
        return decode(text)
    except JsonProblem as error:
        raise DataError(id_, f".{column}: {error.problem}", action=FIX) from error
