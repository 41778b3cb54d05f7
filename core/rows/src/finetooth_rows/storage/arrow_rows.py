"""Rendered rows in a memory-mapped Arrow file, written as a stream and read on demand."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from finetooth_rows.storage.token_rows import TokenPortion

SCHEMA = pa.schema(
    [
        ("id", pa.binary()),
        ("tokens", pa.list_(pa.int32())),
        ("run_lengths", pa.list_(pa.int32())),
        ("run_weights", pa.list_(pa.float32())),
        ("media", pa.binary()),
        ("about", pa.binary()),
    ]
)
VIEWS = 1024
"""Number of portions with cached views; a view is small, since its content stays in the map."""

PortionFacts = tuple[int, int, int]
"""Rows, tokens, and a checksum of the content."""


class ArrowWriter:
    """Writes portions to a file, one record batch each.

    Attributes:
        portions: facts of the written portions.
    """

    def __init__(self, path: Path) -> None:
        self.portions: list[PortionFacts] = []
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)

    def write(self, portion: TokenPortion) -> None:
        """Append a portion; an empty one has no effect."""
        if not len(portion):
            return
        starts, runs = (array.astype(np.int32) for array in (portion.starts, portion.run_starts))
        columns = [
            pa.array([_bytes(id_) for id_ in portion.ids], pa.binary()),
            pa.ListArray.from_arrays(starts, pa.array(portion.tokens)),
            pa.ListArray.from_arrays(runs, pa.array(portion.run_lengths)),
            pa.ListArray.from_arrays(runs, pa.array(portion.run_weights)),
            *(
                pa.array(list(contents), pa.binary()) if contents else pa.nulls(len(portion), pa.binary())
                for contents in (portion.media, portion.about)
            ),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self.portions.append((len(portion), len(portion.tokens), checksum(portion)))

    def __enter__(self) -> ArrowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._sink.close()


class ArrowPortions(Sequence[TokenPortion]):
    """Portions of a file, read from the map on demand.

    Args:
        path: the file from `ArrowWriter`.
        facts: its `portions`.
        damaged: makes the error for a portion whose content has changed since it was written.

    Raises:
        OSError, pyarrow.ArrowInvalid: the file cannot be opened.
    """

    def __init__(self, path: Path, facts: Sequence[PortionFacts], damaged: Callable[[], Exception]) -> None:
        self._size = len(facts)
        # views do not refer to this object, so that it and the file are released with their last user
        self._view = lru_cache(VIEWS)(_MappedFile(path, facts, damaged).read)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> TokenPortion: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenPortion]: ...
    def __getitem__(self, index: int | slice) -> TokenPortion | list[TokenPortion]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < self._size:
            raise IndexError(f"portion {index} of {self._size}")
        return self._view(index)


class _MappedFile:
    """The file of `ArrowPortions`."""

    def __init__(self, path: Path, facts: Sequence[PortionFacts], damaged: Callable[[], Exception]) -> None:
        self._facts, self._damaged = facts, damaged
        self._checked = np.zeros(len(facts), np.bool_)
        self._map = pa.memory_map(str(path))
        self._reader = pa.ipc.open_file(self._map)
        if self._reader.num_record_batches != len(facts):
            raise pa.ArrowInvalid(f"{self._reader.num_record_batches} portions, {len(facts)} expected")

    def read(self, index: int) -> TokenPortion:
        """One portion; its content is compared with its checksum the first time.

        Raises:
            Exception: the error from `damaged`, if the content has changed since it was written.
        """
        batch = self._reader.get_batch(index)
        ids, tokens, lengths, weights, media, about = batch.columns
        portion = TokenPortion(
            _Texts(ids),
            tokens.offsets.to_numpy().astype(np.int64),
            tokens.values.to_numpy(),
            lengths.offsets.to_numpy().astype(np.int64),
            lengths.values.to_numpy(),
            weights.values.to_numpy(),
            *(() if column.null_count == len(column) else _Contents(column) for column in (media, about)),
        )
        if not self._checked[index]:
            rows, count, expected = self._facts[index]
            if (len(portion), len(portion.tokens)) != (rows, count) or checksum(portion) != expected:
                raise self._damaged()
            self._checked[index] = True
        return portion


class _Contents(Sequence[bytes]):
    """Bytes of an Arrow array, copied on demand."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        part = self._array[index]
        content: bytes | list[bytes] = part.to_pylist() if isinstance(index, slice) else part.as_py()
        return content


class _Texts(Sequence[str]):
    """Texts of an Arrow array, decoded on demand."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [_text(content) for content in self._array[index].to_pylist()]
        return _text(self._array[index].as_py())

    def __iter__(self) -> Iterator[str]:
        return iter(self[:])


def checksum(portion: TokenPortion) -> int:
    """CRC-32 of everything in a portion."""
    value = zlib.crc32(_bytes("\0".join(portion.ids)))
    for content in (*portion.media, *portion.about):
        value = zlib.crc32(content, value)
    for array in portion.arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def _bytes(text: str) -> bytes:
    """Bytes of a text; a row id may contain a file name that is not UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")
