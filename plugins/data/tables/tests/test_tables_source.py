"""Tables: what was written is read, whatever the kind of file; every broken line is named; memory stays small."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import string
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from finetooth_hooks import DataError, RecipeError, Row
from finetooth_hooks.protocols import Source
from finetooth_kit import FakeContext, entries_of, parametrize_with_checks
from finetooth_tables import columnar, delimited, json_rows
from finetooth_tables.plugin import claims
from finetooth_tables.source import TablesOptions, build
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = Path(__file__).parent / "small_table.csv"
ENTRIES = [dataclasses.replace(e, example={"path": str(SMALL)}) for e in entries_of("finetooth_tables.plugin")]


@parametrize_with_checks("finetooth_tables.plugin", *ENTRIES)
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture(scope="module")
def bad(shared: Path) -> Path:
    return shared / "bad"


def source(path: Path, notes: list[str] | None = None, **options: Any) -> Source:
    context = FakeContext(path.parent, notes=[] if notes is None else notes)
    return build(TablesOptions(path=str(path), **options), context)


def rows(path: Path, notes: list[str] | None = None, **options: Any) -> list[Row]:
    return list(source(path, notes, **options).rows())


def values(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in rows(path, **options)]


def zstandard(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard}

# --- text tables ------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.lists(st.text(string.ascii_letters, min_size=1, max_size=5), min_size=1, max_size=3, unique=True)


@st.composite
def text_tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    names = draw(NAMES)
    # a table of one column cannot tell an empty field from a blank line
    cell = TEXT if len(names) > 1 else TEXT.filter(bool)
    return names, draw(st.lists(st.lists(cell, min_size=len(names), max_size=len(names)), min_size=1, max_size=8))


def written(
    names: Sequence[str], records: Sequence[Sequence[str]], delimiter: str, end: str
) -> tuple[bytes, list[int]]:
    """The csv module's bytes, and the line on which each record begins."""
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    begins = []
    writer.writerow(names)
    for record in records:
        begins.append(sink.getvalue().encode().count(b"\n") + 1)
        writer.writerow(record)
    return sink.getvalue().encode(), begins


@settings(deadline=None)
@given(text_tables(), st.sampled_from([".csv", ".tsv"]), st.sampled_from(["\n", "\r\n"]), st.sampled_from(list(PACK)))
def test_a_text_table_is_read_as_the_csv_module_wrote_it(
    tmp_path_factory: pytest.TempPathFactory, table: Any, ending: str, end: str, packed: str
) -> None:
    names, records = table
    content, begins = written(names, records, "," if ending == ".csv" else "\t", end)
    path = tmp_path_factory.getbasetemp() / f"x{ending}{packed}"
    path.write_bytes(PACK[packed](content))
    expected = [
        Row(f"{path.as_posix()}:{n}", dict(zip(names, r, strict=True))) for n, r in zip(begins, records, strict=True)
    ]
    assert rows(path) == expected


@settings(deadline=None)
@given(text_tables(), st.integers(1, 200))
def test_portions_change_nothing(tmp_path_factory: pytest.TempPathFactory, table: Any, size: int) -> None:
    """However the file is cut, rows and errors are those of the file in one piece."""
    names, records = table
    content, _ = written(names, records, ",", "\n")
    content += b"one field too many" + b",x" * len(names) + b"\n\n" + written(names, records, ",", "\n")[0]
    content += b'"a"b' + b",x" * (len(names) - 1) + b"\n"
    content += b"not \xff" + b",x" * (len(names) - 1) + b"\n"
    path = tmp_path_factory.getbasetemp() / "cut.csv"
    path.write_bytes(content)

    def read() -> list[Any]:
        built = source(path)
        assert "portions" in built.capabilities
        found = [item for portion in built.portions() for item in built.read(portion)]
        return [item if isinstance(item, Row) else str(item) for item in found]

    whole = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "PORTION_BYTES", size)
        assert read() == whole
    said = [item for item in whole if isinstance(item, str)]
    assert len(said) == 3 and f"at offset {content.index(0xFF)}" in said[2]


def test_fields_stay_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n007,1.50\nNA,\nnull,True\n")
    assert values(tmp_path / "x.csv") == [{"a": "007", "b": "1.50"}, {"a": "NA", "b": ""}, {"a": "null", "b": "True"}]


def test_ragged_lines_are_all_named(bad: Path) -> None:
    path = bad / "ragged.csv"
    said = "line 3: 3 fields, 2 expected; line 4: 1 field, 2 expected; line 6: a quote is not closed"
    with pytest.raises(DataError, match=said) as error:
        rows(path)
    assert str(error.value).startswith(f"{path.as_posix()}: 3 broken lines, 2 good: ")


def test_the_header_may_follow_blank_lines_and_a_mark(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf\na,b\n1,2\n\n3,\xff\n")
    notes: list[str] = []
    with pytest.raises(DataError, match=r"1 broken line, 1 good: line 5: not UTF-8: byte 0xff at offset 15"):
        rows(tmp_path / "x.csv", notes)
    assert (tmp_path / "x.csv").read_bytes()[15] == 0xFF
    assert len(notes) == 1 and "byte order mark" in notes[0]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n"])
def test_another_delimiter_is_taken_and_said(tmp_path: Path, delimiter: str, start: str) -> None:
    text = f"{start}a{delimiter}b\n1{delimiter}2,5\n"
    (tmp_path / "x.csv").write_text(text)
    notes: list[str] = []
    assert [dict(row.values) for row in rows(tmp_path / "x.csv", notes)] == [{"a": "1", "b": "2,5"}]
    assert notes[0].endswith(f"{delimiter!r} separates the fields of its header, so it is taken as the delimiter")
    assert values(tmp_path / "x.csv", delimiter=delimiter) == [{"a": "1", "b": "2,5"}]


def test_a_delimiter_that_is_named_or_quoted_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a;b\n1;2\n")
    with pytest.raises(DataError, match=r"one column, named 'a;b' \(set delimiter: ';'"):
        rows(tmp_path / "x.csv", delimiter=",")
    (tmp_path / "y.csv").write_text("a;x,b\n1,2\n")
    assert values(tmp_path / "y.csv") == [{"a;x": "1", "b": "2"}]
    assert values(SMALL)


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "FIELD_LIMIT", 1000)
    before = csv.field_size_limit(1000)
    try:
        (tmp_path / "x.csv").write_text('a,b\n1,2\n3,"4\n' + "5,6\n" * 1_000)
        with pytest.raises(DataError, match="1 broken line, 1 good: line 3: a quote is not closed within 1,000"):
            rows(tmp_path / "x.csv")
    finally:
        csv.field_size_limit(before)


def test_a_long_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1," + "x" * 300_000 + "\n2,y\n")
    assert [len(row["b"]) for row in values(tmp_path / "x.csv")] == [300_000, 1]


# --- columns ----------------------------------------------------------------------------------------------------------

TYPED = [
    {"text": "é😀", "n": 1, "x": 0.5, "raw": b"\xff\x00", "on": date(2024, 2, 29), "deep": [{"a": 1, "b": 2}]},
    {"text": None, "n": 2**40, "x": None, "raw": b"", "on": None, "deep": []},
]


def write_columns(path: Path, table: pa.Table, rows_each: int | None = None) -> None:
    """In the way that the ending names; `.ipc` as a stream."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_each)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, chunksize=rows_each)
    else:
        make = pa.ipc.new_stream if path.suffix == ".ipc" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_each)


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".feather", ".ipc"])
def test_columns_keep_their_types(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    write_columns(path, pa.Table.from_pylist(TYPED * 3), 2)
    assert rows(path) == [Row(f"{path.as_posix()}:row {n}", v) for n, v in enumerate(TYPED * 3, start=1)]


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".ipc"])
@settings(deadline=None)
@given(data=st.lists(st.integers(0, 100), min_size=1, max_size=40), each=st.integers(1, 9), rows_=st.integers(1, 9))
def test_portions_of_columns_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: list[int], each: int, rows_: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"portions{ending}"
    write_columns(path, pa.table({"n": data}), each)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "PORTION_ROWS", rows_)
        found = rows(path)
        built = source(path)
        assert "portions" in built.capabilities
        assert len(list(built.portions())) >= len(data) / rows_
    assert [row.values["n"] for row in found] == data
    assert [row.id.rsplit(":", 1)[1] for row in found] == [f"row {n + 1}" for n in range(len(data))]


def test_text_that_is_not_utf8_is_named_by_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    texts = pa.array([b"fine", b"not \xe9", b"fine too"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"n": [1, 2, 3], "text": texts}), path)
    with pytest.raises(DataError, match="1 broken row, 2 good: row 2: column 'text' is not UTF-8: byte 0xe9 at 4"):
        rows(path)


def test_a_cut_parquet_file(bad: Path) -> None:
    with pytest.raises(DataError, match=r"truncated\.parquet: the file has no Parquet footer \(cut off\?\)"):
        rows(bad / "truncated.parquet")


def test_damage_inside_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": list(range(20_000))}), path, row_group_size=5_000, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    offset = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content[offset : offset + 30] = b"\xff" * 30
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"row \d+ and what follows cannot be read: "):
        rows(path)


@pytest.mark.parametrize("ending", [".arrow", ".ipc"])
def test_a_cut_arrow_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    write_columns(path, pa.table({"n": list(range(1000))}), 100)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match="cannot be read: "):
        rows(path)


def test_a_stream_without_its_end_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.ipc"
    write_columns(path, pa.table({"n": [1, 2]}))
    notes: list[str] = []
    assert len(rows(path, notes)) == 2 and not notes
    path.write_bytes(path.read_bytes()[:-8])
    assert len(rows(path, notes)) == 2 and "no mark at its end" in notes[0]


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_a_large_file_is_never_all_in_memory(tmp_path: Path, ending: str) -> None:
    """One row group of 16 MB (16 record batches for Arrow): what is held at once is a small part of it."""
    path = tmp_path / f"x{ending}"
    rng = np.random.default_rng(0)
    table = pa.table({"text": [rng.bytes(500).hex() for _ in range(16_000)]})
    write_columns(path, table, 16_000 if ending == ".parquet" else 1_000)
    del table
    before, peak, count = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    for _ in source(path).rows():
        count += 1
        if count % 100 == 0:
            peak = max(peak, pa.total_allocated_bytes() - before)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 16_000
    assert peak < 6_000_000 and python_peak < 6_000_000


# --- JSON -------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), min_size=1, max_size=6)


@settings(deadline=None)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 2]), st.integers(1, 40), st.sampled_from(list(PACK)))
def test_json_is_read_as_the_json_module_wrote_it(
    tmp_path_factory: pytest.TempPathFactory,
    objects: list[dict[str, Any]],
    ascii_only: bool,
    indent: int | None,
    size: int,
    packed: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"x.json{packed}"
    for content in (objects, {"version": -1.5e-7, "count": 12, "rows": objects, "note": "\ud83d\ude00 ]}"}):
        text = json.dumps(content, ensure_ascii=ascii_only, indent=indent)
        path.write_bytes(PACK[packed](text.encode("utf-8", "replace")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_rows, "READ_BYTES", size)
            found = rows(path)
        assert [dict(row.values) for row in found] == objects
        assert [row.id for row in found] == [f"{path.as_posix()}:row {n + 1}" for n in range(len(objects))]


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["x.json", "x.csv", "x.parquet", "x.arrow", "x.csv.gz", "x.json.zst"]))
def test_any_bytes_give_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    try:
        found = rows(path)
    except DataError as error:
        assert "\n" not in str(error) and path.as_posix() in str(error)
    else:
        assert found


def test_rows_under_a_key(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": [{"a": 1}], "test": [{"a": 2}]}))
    assert values(path, field="test") == [{"a": 2}]
    with pytest.raises(DataError, match=r"several lists: train, test \(say with field"):
        rows(path)
    with pytest.raises(DataError, match="no list under 'nope': its keys are test, train"):
        rows(path, field="nope")


@pytest.mark.slow
def test_a_large_array_is_never_all_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" + ",\n".join(json.dumps({"text": "x" * 1000}) for _ in range(10_000)) + "]")
    tracemalloc.start()
    count = sum(1 for _ in source(path).rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000 and peak < 2_000_000


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.csv", b"", "the file is empty"),
        ("x.csv", b"a,b\n", r"x\.csv: no rows, only a header"),
        ("x.tsv", b"a\tb\n\n", r"x\.tsv: no rows, only a header"),
        ("x.csv", b"\n\n", r"x\.csv: no rows, only blank lines"),
        ("x.csv", b"a,a\n1,2\n", r"x\.csv:1: two columns are named 'a'"),
        ("x.csv", b"a,\xff\n1,2\n", r"x\.csv:1: the header is not UTF-8: byte 0xff at offset 2"),
        ("x.csv", b"a,b\n1,\xff\n", r"line 2: not UTF-8: byte 0xff at offset 6"),
        ("x.csv", b"a,b\n" + b"1\n" * 8, "8 broken lines, 0 good: .*line 6: 1 field, 2 expected; and 3 more"),
        ("x.csv", b'a,b\n1,"two\nlines"\n3\n', "line 4: 1 field, 2 expected"),
        ("x.csv", b'a,b\n"1"2,3\n4,5\n6\n', "2 broken lines, 1 good: line 2: text after a closing quote"),
        ("x.csv", b"a,b\r1,2\r3,4\r", "the header: a carriage return inside the line"),
        ("x.csv.gz", b"a,b\n1,2\n", r"it is named \.gz but holds no gzip data \(rename it to \.csv"),
        ("x.parquet", b"not parquet", "it is not a Parquet file"),
        ("x.parquet", b"PAR1" + b"\0" * 20 + b"PAR1", "it cannot be read"),
        ("x.parquet", b"PAR1" + b"\0" * 20 + b"PARE", "is encrypted"),
        ("x.parquet", b"", "the file is empty"),
        ("x.arrow", b"not arrow", "it cannot be read"),
        ("x.feather", b"FEA1" + b"\0" * 20 + b"FEA1", "Feather version 1"),
        ("x.json", b"", "the file is empty"),
        ("x.json", b'[{"a": 1},\n {"a": }]', r"x\.json:2: not JSON: expecting value"),
        ("x.json", b'[{"a": 1},\n {"a": 2}', r"x\.json:2: not complete JSON"),
        ("x.json", b'[{"a": 1}\n {"a": 2}]', r"x\.json:2: not JSON: , or \] expected"),
        ("x.json", b'[{"a": 1, "a": 2}]', "the key 'a' occurs twice"),
        ("x.json", b'[{"a": NaN}]', "'a' is NaN, not a finite number"),
        ("x.json", b'[{"a": 1}, [2], "c"]', "row 2 is an array, not an object; row 3 is a string"),
        ("x.json", b'{"a": 1}', r"an object without a list of rows \(its keys: a\)"),
        ("x.json", b"[]", "its list is empty"),
        ("x.json", b'"text"', "a string, not a list of rows"),
        ("x.json", b'[{"a": "\n\xff"}]', r"x\.json:2: not UTF-8: byte 0xff at offset 9"),
        ("x.json", b'[{"a": 1}] x', "text after the end of the JSON"),
    ],
)
def test_faults(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as error:
        rows(tmp_path / name)
    assert "\n" not in str(error.value) and str(error.value).startswith((tmp_path / name).as_posix())


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.arrow", "none.json"])
def test_missing_files_and_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        rows(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        rows(tmp_path / name)


def test_columns_with_one_name(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="two columns are named 'a'"):
        rows(tmp_path / "x.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="it has no rows"):
        rows(tmp_path / "y.parquet")


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("x.txt", {}, r"tables, path: .*x\.txt does not have the ending of a table"),
        ("x.parquet", {"delimiter": ";"}, "tables, delimiter: a .parquet file has no delimiter"),
        ("x.csv", {"field": "data"}, "tables, field: a .csv file has no keys"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        rows(tmp_path / name, **options)


@pytest.mark.parametrize(
    ("reference", "mine"),
    [
        ("a.csv", True),
        ("b/c.PARQUET", True),
        ("a.json.zst", True),
        ("a.feather", True),
        ("a.jsonl", False),
        ("https://example.org/a.csv", False),
        ("org/name", False),
    ],
)
def test_claims(reference: str, mine: bool) -> None:
    claim = claims(reference)
    assert (claim is not None and claim.strength == 2) is mine
