"""Parquet and Arrow files: columns on disk, rows a portion at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from finetooth_hooks import DataError, Row
from finetooth_hooks.protocols import Portion
from finetooth_rows.portions import PortionedRows
from finetooth_toolbox.files.missing import MissingFile
from finetooth_toolbox.struct_padding import padding_note, without_padding
from finetooth_toolbox.text.column_names import check_columns

PORTION_BYTES = 300_000
PORTION_ROWS = 4_000
LARGEST_ROW = 1 << 24
"""Bytes of text in a row: tokenizers take a hundred times as much of memory."""
LARGEST_PORTION = 1 << 30
"""Largest size of rows that are read at once, in bytes, for any dictionaries in a file."""
SMALL = 1 << 21
"""Bytes of a dictionary that is held with the rows, so that its texts are not unfolded before they are looked at."""
BUFFER_BYTES = 1 << 18
PARQUET_MAGIC = b"PAR1"
ENCRYPTED_MAGIC = b"PARE"
ARROW_MAGIC = b"ARROW1"
FEATHER_1_MAGIC = b"FEA1"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
WRITTEN = "check that it was written to the end"


class ColumnarTable(PortionedRows):
    """Rows of a file of columns; the id of a row is `FILE:row NUMBER`, from 1.

    A portion is a small Arrow stream, so that values of any type (bytes, dates, nested) reach its reader. Nulls
    inside structs are absent, see `finetooth_toolbox.struct_padding`.

    Args:
        note: told once if there are such nulls, and of an Arrow stream without an end.
    """

    def __init__(self, path: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self._path, self._note = path, note
        self.name = path.as_posix()

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self._path,)

    def portions(self) -> Iterator[Portion]:
        """Some rows each; `place` is the number of the first.

        Raises:
            DataError: the file is missing, empty, cut off or of another kind.
        """
        if not self._path.is_file():
            if not self._path.exists():
                raise MissingFile(self._path)
            raise DataError(self.name, "it is a folder", action="name a file in it")
        if self._path.stat().st_size == 0:
            raise DataError(self.name, "the file is empty", action=WRITTEN)
        first, padded = 1, False
        with self._naming_faults(lambda: first):
            for batch in self._batches():
                if not padded and (columns := _padded(batch)):
                    self._note(padding_note(self.name, columns[0]))
                    padded = True
                yield Portion(_pack(batch), (first,))
                first += batch.num_rows
        if first == 1:
            raise DataError(self.name, "it has no rows", action=WRITTEN)

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """The rows of a portion, and an error for each that holds text that is not UTF-8."""
        first = portion.place[0]
        table = pa.ipc.open_stream(portion.content).read_all()
        try:
            rows: Iterable[Any] = table.to_pylist()
        except UnicodeDecodeError:
            rows = (_row(table, index) for index in range(table.num_rows))
        padded = _padded(table)
        for index, values in enumerate(rows):
            id_ = f"{self.name}:row {first + index}"
            if isinstance(values, str):
                yield DataError(id_, values, action="write the file's text as UTF-8")
            else:
                yield Row(id_, values | {name: without_padding(values[name]) for name in padded})

    @abstractmethod
    def _batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, a portion's worth at a time."""

    def _check_columns(self, schema: pa.Schema) -> None:
        check_columns(schema.names, self.name)
        if not schema.names:
            raise DataError(self.name, "it has no columns", action=WRITTEN)

    @contextmanager
    def _naming_faults(self, first: Callable[[], int]) -> Iterator[None]:
        """The library's errors as ours."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            where = f"row {first()} and what follows" if first() > 1 else "it"
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                self.name, f"{where} cannot be read: {reason}", action="fetch or write the file again"
            ) from error


class ParquetTable(ColumnarTable):
    """A `.parquet` file. Pages are read one by one, so that no row group is held as a whole."""

    def _batches(self) -> Iterator[pa.RecordBatch]:
        self._check_frame()
        # buffer_size streams the pages of a column; pre_buffer would read whole row groups ahead
        schema = pq.read_schema(self._path)
        self._check_columns(schema)
        about = pq.read_metadata(self._path)
        largest = _dictionaries(about)
        texts = [field.name for field in schema if _holds_text(field.type) and 0 < largest[field.name] <= SMALL]
        with pq.ParquetFile(self._path, read_dictionary=texts, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            unfolds = max((size for name, size in largest.items() if name not in texts), default=0)
            rows = min(_portion_rows(size, about.num_rows), max(1, LARGEST_PORTION // max(1, unfolds)))
            first = 1
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                yield from _unfolded(batch, schema, self.name, first)
                first += batch.num_rows

    def _check_frame(self) -> None:
        with self._path.open("rb") as file:
            start = file.read(4)
            file.seek(-min(4, self._path.stat().st_size), 2)
            end = file.read(4)
        if ENCRYPTED_MAGIC in (start, end):
            raise DataError(self.name, "the Parquet file is encrypted", action="decrypt it first")
        if start != PARQUET_MAGIC:
            raise DataError(
                self.name, "it is not a Parquet file (PAR1 does not begin it)", action="check what wrote it"
            )
        if end != PARQUET_MAGIC:
            raise DataError(self.name, "the file has no Parquet footer (cut off?)", action="fetch or write it again")


class ArrowTable(ColumnarTable):
    """An Arrow file (also called Feather) or stream; which of the two, its first bytes say."""

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(self._path)) as file:
            start = file.read(len(ARROW_MAGIC))
            if start.startswith(FEATHER_1_MAGIC):
                raise DataError(
                    self.name, "it is Feather version 1, which is not read", action="write it as version 2, or Parquet"
                )
            file.seek(0)
            batches = _file_batches(file) if start == ARROW_MAGIC else self._stream_batches(file)
            for number, batch in enumerate(batches):
                if not number:
                    self._check_columns(batch.schema)
                rows = _portion_rows(batch.nbytes, batch.num_rows)
                for begin in range(0, batch.num_rows, rows):
                    yield batch.slice(begin, rows)

    def _stream_batches(self, file: Any) -> Iterator[pa.RecordBatch]:
        yield from pa.ipc.open_stream(file)
        with self._path.open("rb") as end:
            end.seek(-min(len(END_OF_STREAM), self._path.stat().st_size), 2)
            if end.read() != END_OF_STREAM:
                self._note(f"{self.name} has no mark at its end, so rows may be missing there unnoticed")


def _file_batches(file: Any) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(file)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _portion_rows(size: int, rows: int) -> int:
    """How many rows make a portion, by the size of the average one."""
    return max(1, min(PORTION_ROWS, PORTION_BYTES * rows // size if size else PORTION_ROWS))


def _dictionaries(about: pq.FileMetaData) -> Counter[str]:
    """By column, the bytes of its largest chunk that has a dictionary: no value in it is longer."""
    largest: Counter[str] = Counter()
    for group in map(about.row_group, range(about.num_row_groups)):
        for chunk in map(group.column, range(about.num_columns)):
            name = chunk.path_in_schema.partition(".")[0]
            if chunk.has_dictionary_page:
                largest[name] = max(largest[name], chunk.total_uncompressed_size)
    return largest


def _holds_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_binary))


def _unfolded(batch: pa.RecordBatch, schema: pa.Schema, name: str, first: int) -> Iterator[pa.RecordBatch]:
    """A batch whose texts may stand in dictionaries, in portions with the texts in their rows: a file of a megabyte may
    say one text of ten megabytes a thousand times, so the size of what comes out is looked at before it is made.

    Raises:
        DataError: a row is larger than any that can be trained.
    """
    sizes = np.zeros(batch.num_rows, dtype=np.int64)  # of the expanded texts
    texts = np.zeros(batch.num_rows, dtype=np.int64)
    for column, field in zip(batch.columns, schema, strict=True):
        if not _holds_text(field.type):
            continue
        folded = pa.types.is_dictionary(column.type)
        lengths = pc.binary_length(column.dictionary if folded else column).fill_null(0)
        if folded:
            lengths = pc.take(lengths, column.indices).fill_null(0)
            sizes += lengths.to_numpy(zero_copy_only=False)
        if pa.types.is_string(field.type):
            texts += lengths.to_numpy(zero_copy_only=False)
    if batch.num_rows and texts.max() > LARGEST_ROW:
        where = f"row {first + int(texts.argmax())}"
        raise DataError(name, f"{where} has {texts.max():,} bytes of text", action="split it")
    begin = 0
    while begin < batch.num_rows:
        count = max(1, int(np.searchsorted(np.cumsum(sizes[begin:]), PORTION_BYTES, side="right")))
        part = batch.slice(begin, count)
        plain = [
            column.dictionary_decode().cast(field.type) if column.type != field.type else column
            for column, field in zip(part.columns, schema, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(plain, schema=schema)
        begin += count


def _pack(batch: pa.RecordBatch) -> bytes:
    batch = batch.replace_schema_metadata(None)  # some writers keep kilobytes there
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _padded(table: pa.Table | pa.RecordBatch) -> list[str]:
    """The columns with a null in a struct."""
    return [name for name in table.column_names if _has_padding(table.column(name))]


def _has_padding(column: Any) -> bool:
    if isinstance(column, pa.ChunkedArray):
        return any(map(_has_padding, column.chunks))
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type):
        fields = pc.drop_null(column).flatten()
        return any(field.null_count or _has_padding(field) for field in fields)
    if pa.types.is_map(column.type):
        return _has_padding(column.items)
    return hasattr(column, "flatten") and pa.types.is_nested(column.type) and _has_padding(column.flatten())


def _row(table: pa.Table, index: int) -> dict[str, Any] | str:
    """The values of a row, or its fault."""
    values: dict[str, Any] = {}
    for name in table.column_names:
        try:
            values[name] = table.column(name)[index].as_py()
        except UnicodeDecodeError as error:
            return f"column {name!r} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
    return values
