"""Finds faults of a table before a library reads it, with line numbers and without guessing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import DataError
from finetooth_toolbox.files.json_layout import is_lines
from finetooth_toolbox.files.missing import MissingFile
from finetooth_toolbox.text.column_names import check_columns
from finetooth_toolbox.text.strict_json import JsonProblem, received

SHOWN = 5
"""How many broken lines an error spells out before it only counts."""

PARQUET_MAGIC = b"PAR1"
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def check(path: Path) -> None:
    """Check a file by its kind.

    Raises:
        DataError: missing, empty, without rows, not UTF-8, ragged, cut off or not of its kind.
    """
    name = path.as_posix()
    if not path.exists():
        raise MissingFile(path)
    if not path.is_file():
        raise DataError(name, "it is a folder", action="name a file in it")
    if path.stat().st_size == 0:
        raise DataError(name, "the file is empty", action="check that it was written to the end")
    ending = path.suffix.lower()
    if ending in DELIMITERS:
        _check_rectangle(path, DELIMITERS[ending])
    elif ending == ".parquet":
        _check_parquet(path)
    elif ending == ".json":
        _check_json(path)


def header(path: Path) -> list[str]:
    """Names of the columns of a .csv or .tsv file that `check` has passed."""
    reader = csv.reader(_lines(path), delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    return next(record for record in reader if record)


def _check_rectangle(path: Path, delimiter: str) -> None:
    """Every record has as many fields as the header, and every quote is closed."""
    problems: list[tuple[int, str]] = []
    first = 1
    columns = 0
    rows = 0
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            reason = "a quote is not closed" if "unexpected end" in str(error) else str(error)
            problems.append((first, reason))
            break
        if not record:
            continue  # a blank line
        if columns:
            rows += 1
        if not columns:
            columns = len(record)
            check_columns(record, f"{path.as_posix()}:1")
        elif len(record) != columns:
            fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
            problems.append((first, f"{fields}, {columns} expected"))
    if not problems:
        if not rows:
            absence = "no rows, only a header" if columns else "no rows, only blank lines"
            raise DataError(path.as_posix(), absence, action="check that it was written to the end")
        return
    shown = "; ".join(f"line {line}: {problem}" for line, problem in problems[:SHOWN])
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise DataError(path.as_posix(), f"{shown}{more}", action="fix or remove the broken lines")


def _lines(path: Path) -> Iterator[str]:
    """Lines as text, with the offset of bytes that are not UTF-8."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path.as_posix()}:{number}",
                    f"not UTF-8: byte 0x{line[error.start]:02x} at offset {offset + error.start}",
                    action="convert the file to UTF-8",
                ) from error
            offset += len(line)
            yield text


def _check_parquet(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(-min(4, path.stat().st_size), 2)
        end = file.read(4)
    if start != PARQUET_MAGIC:
        raise DataError(
            path.as_posix(), "it is not a Parquet file (PAR1 does not begin it)", action="check what wrote it"
        )
    if end != PARQUET_MAGIC:
        raise DataError(path.as_posix(), "the file has no Parquet footer (cut off?)", action="fetch or write it again")


def _check_json(path: Path) -> None:
    """One JSON value, or JSON lines; the library checks the values."""
    text = "".join(_lines(path))
    try:
        received(text)
    except JsonProblem as problem:
        error = problem.__cause__
        if not isinstance(error, json.JSONDecodeError):
            raise DataError(path.as_posix(), str(problem), action="fix the file") from problem
        if is_lines(path):  # which the library reads under this name too
            return _check_lines(path, text)
        raise DataError(
            f"{path.as_posix()}:{error.lineno}", f"not JSON: {error.msg.lower()}", action="fix the file"
        ) from error


def _check_lines(path: Path, text: str) -> None:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            row = received(line) if line.strip() else {}
        except JsonProblem as problem:
            error, where = problem.__cause__, f"{path.as_posix()}:{number}"
            fault = f"not JSON: {error.msg.lower()}" if isinstance(error, json.JSONDecodeError) else str(problem)
            raise DataError(where, fault, action="fix the line") from problem
        if not isinstance(row, dict):
            raise DataError(f"{path.as_posix()}:{number}", "no JSON object", action="write one JSON object a line")
