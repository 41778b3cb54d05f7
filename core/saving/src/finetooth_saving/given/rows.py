"""Saves rows in memory as a file of JSON lines: lists, iterators, DataFrames, data sets of the library datasets."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import RecipeError
from finetooth_toolbox.struct_padding import without_padding
from finetooth_toolbox.text.column_names import repeated

EXPECTED = "give mappings from column to value, a DataFrame, or a Dataset of the library datasets"


def keep_rows(value: Any, setting: str, folder: Path) -> Any:
    """Save rows and return their reference. A list of references (paths, mappings that pick a source by `name`) stays a
    list; each table in it is saved.

    Raises:
        RecipeError: the value has no rows, or a cell that JSON cannot represent; names the row and the column.
    """
    if isinstance(value, list | tuple):
        if all(_is_source(item) for item in value):
            return value
        if not any(isinstance(item, Mapping) for item in value):
            return [item if _is_source(item) else keep_rows(item, f"{setting}.{n}", folder)
                    for n, item in enumerate(value)]  # fmt: skip
    return _write(_mappings(value, setting), setting, folder)


def _is_source(item: Any) -> bool:
    """Whether an item of a list is a reference to rows, not a row."""
    return isinstance(item, str | Path) or (isinstance(item, Mapping) and isinstance(item.get("name"), str))


def _mappings(value: Any, setting: str) -> Iterator[Any]:
    """The rows of a list, an iterator or a table, as mappings.

    Raises:
        RecipeError: the value has no rows.
    """
    if hasattr(value, "to_dict") and hasattr(value, "columns") and hasattr(value, "index"):  # pandas
        _check_columns(value.columns, setting)
        return iter(value.to_dict(orient="records"))
    if hasattr(value, "iter_rows") and hasattr(value, "columns"):  # polars
        return iter(value.iter_rows(named=True))
    if hasattr(value, "to_batches") and hasattr(value, "schema"):  # pyarrow
        return (without_padding(row) for batch in value.to_batches() for row in batch.to_pylist())
    if hasattr(value, "features") and hasattr(value, "column_names"):  # datasets
        return (without_padding(dict(row)) for row in value)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        what = "a DatasetDict; name one of its splits" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise RecipeError(setting, f"it is given {what}", action=EXPECTED)
    return iter(value)


def _check_columns(columns: Iterable[Any], setting: str) -> None:
    """
    Raises:
        RecipeError: two columns of a DataFrame have the same name, so one of them would be lost.
    """
    twice = repeated(str(column) for column in columns)
    if twice is not None:
        raise RecipeError(setting, f"two columns of the DataFrame are named {twice!r}", action="rename one")


def _write(rows: Iterator[Any], setting: str, folder: Path) -> str:
    """Write the rows to a file named by the hash of their content.

    Returns:
        The path of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    being_written = folder / f".rows-{secrets.token_hex(8)}"
    hashed, count = hashlib.sha256(), 0
    try:
        with being_written.open("wb") as file:
            for count, row in enumerate(rows, start=1):
                line = _line(row, f"row {count}", setting)
                hashed.update(line)
                file.write(line)
        if not count:
            raise RecipeError(setting, "it has no rows", action="an iterator that was read before has none left")
        path = folder / f"rows-{hashed.hexdigest()[:12]}.jsonl"
        being_written.replace(path)
    finally:
        being_written.unlink(missing_ok=True)
    return path.as_posix()


def _line(row: Any, name: str, setting: str) -> bytes:
    if not isinstance(row, Mapping):
        raise RecipeError(setting, f"{name} is a {type(row).__name__}, not a mapping of columns", action=EXPECTED)
    plain = {str(column): _plain(value, f"{name}, column {column}", setting) for column, value in row.items()}
    return json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _plain(value: Any, where: str, setting: str) -> Any:
    """A value as JSON. An empty cell of a table (NaN, NaT, NA) becomes null; times become texts (ISO 8601).

    Raises:
        RecipeError: JSON cannot represent the value.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and not math.isnan(value):
        if math.isinf(value):
            raise RecipeError(setting, f"{where} is {value}, which JSON cannot hold", action="replace it")
        return value
    if isinstance(value, float) or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where, setting) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, setting) for item in value]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # arrays and numbers of NumPy
        return _plain(value.tolist(), where, setting)
    raise RecipeError(
        setting, f"{where} is a {type(value).__name__}, which is not kept as text", action="save the rows as Parquet, "
        "or pictures and sounds as files, and name their paths"
    )  # fmt: skip
