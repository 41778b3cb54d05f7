"""Strict reading: what each broken file of the shared data must say, and properties of good ones."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from finetooth_hooks import DataError, Row
from finetooth_jsonlines import source
from finetooth_jsonlines.lines import BrokenLine, parse
from finetooth_jsonlines.plugin import claims
from finetooth_jsonlines.source import JsonLines
from finetooth_kit import FakeContext, entries_of, parametrize_with_checks
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = Path(__file__).parent / "small.jsonl"
ENTRIES = [dataclasses.replace(e, example={"path": str(SMALL)}) for e in entries_of("finetooth_jsonlines.plugin")]


@parametrize_with_checks("finetooth_jsonlines.plugin", *ENTRIES)
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture(scope="module")
def bad(shared: Path) -> Path:
    return shared / "bad"


def rows(path: Path, notes: list[str] | None = None) -> list[Row]:
    return list(JsonLines(path, [].append if notes is None else notes.append).rows())


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("truncated.jsonl", r"1 broken line, 2 good: line 3: not complete JSON \(unexpected end\)"),
        ("mixed_line_endings.jsonl", "line 3: a carriage return inside the line"),
        ("invalid_utf8.jsonl", "line 2: not UTF-8: byte 0xe9 at offset 148"),
        ("empty.jsonl", "the file is empty"),
        (
            "duplicate_keys.jsonl",
            "line 2: the key 'messages' occurs twice in one object; line 3: the key 'role' occurs twice",
        ),
        (
            "nested_wrong_types.jsonl",
            "line 5: an array, not an object; line 6: a string, .*; line 7: null, not an object",
        ),
        (
            "nan_infinity.jsonl",
            "line 1: 'margin' is NaN, not a finite number; line 2: 'margin' is Infinity, .*; line 3: 'margin' is 1e999",
        ),
        ("not_gzip.jsonl.gz", "it is named .gz but holds no gzip data"),
    ],
)
def test_broken_files_are_named_with_every_line(bad: Path, file: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        rows(bad / file)
    assert str(error.value).startswith((bad / file).as_posix())
    assert "\n" not in str(error.value)


def test_the_offset_of_a_bad_byte_is_its_place_in_the_file(bad: Path) -> None:
    data = (bad / "invalid_utf8.jsonl").read_bytes()
    assert data[148] == 0xE9
    with pytest.raises(UnicodeDecodeError) as error:
        data.decode()
    assert error.value.start == 148


def test_byte_order_mark(bad: Path) -> None:
    notes: list[str] = []
    read = rows(bad / "bom.jsonl", notes)
    assert [set(row.values) for row in read] == [{"messages"}, {"messages"}]
    assert len(notes) == 1 and "byte order mark" in notes[0]


@pytest.mark.parametrize("size", [1, 7, 20, 1000])
def test_portions_change_nothing(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the file is cut, lines and offsets are those of the whole file."""
    data = b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}\r\n{"a": 3}\n{"a": "\xff"}\n'
    (tmp_path / "x.jsonl").write_bytes(data)
    monkeypatch.setattr(source, "PORTION_BYTES", size)
    with pytest.raises(DataError, match=rf"1 broken line, 3 good: line 5: .* at offset {data.index(0xFF)} "):
        rows(tmp_path / "x.jsonl")


def test_offsets_count_the_mark(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": "\xff"}\n{"a": "\xff"}\n'
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=r"at offset 10; .* at offset 21"):
        rows(tmp_path / "x.jsonl")
    assert (data[10], data[21]) == (0xFF, 0xFF)


def test_blank_lines_count_in_line_numbers(bad: Path) -> None:
    assert [row.id.rsplit(":", 1)[1] for row in rows(bad / "blank_lines.jsonl")] == ["3", "6"]


def test_a_long_line_is_read(bad: Path) -> None:
    read = rows(bad / "long_single_line.jsonl")
    assert len(read) == 2 and len(json.dumps(read[0].values)) > 190_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=5)


def zstandard(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard}


@settings(deadline=None)
@given(
    OBJECTS, st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans(), st.sampled_from(["", ".gz", ".zst"])
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    objects: list[dict[str, Any]],
    ascii_only: bool,
    end: str,
    last_end: bool,
    packed: str,
) -> None:
    data = end.join(json.dumps(value, ensure_ascii=ascii_only) for value in objects) + (end if last_end else "")
    path = tmp_path_factory.getbasetemp() / f"written.jsonl{packed}"
    path.write_bytes(PACK[packed](data.encode("utf-8", "surrogatepass")))
    step = 2 if end == "\n\n" else 1
    read = rows(path)
    assert [dict(row.values) for row in read] == objects
    assert [row.id for row in read] == [f"{path.as_posix()}:{1 + i * step}" for i in range(len(objects))]


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    try:
        read = rows(path)
    except DataError as error:
        assert "\n" not in str(error) and path.as_posix() in str(error)
    else:
        lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        assert [dict(row.values) for row in read] == [json.loads(line) for line in lines]


def test_many_broken_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' + "nope\n" * 9)
    with pytest.raises(DataError, match=r"9 broken lines, 1 good: line 2, .*: not JSON: .* at character 1; and 4 more"):
        rows(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": [[NaN]]}', "NaN is not a finite number"),
        (b'{"a": {"b": -Infinity}}', "'b' is -Infinity, not a finite number"),
        (b'{"a": 1} {"a": 2}', "not JSON: extra data at character 10"),
        (b"[" * 100_000, "nested too deep|not complete JSON"),
        (b'{"a": "\x00"}', "not JSON: invalid control character"),
        (b"{'a': 1}", "not JSON: expecting property name"),
    ],
)
def test_what_a_line_may_not_be(line: bytes, problem: str) -> None:
    with pytest.raises(BrokenLine, match=problem):
        parse(line, 1, 0)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_damaged_packing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.jsonl{ending}"
    whole = PACK[ending](json.dumps({"a": "".join(map(chr, range(40, 3000)))}).encode() + b"\n")
    damaged = [whole[: len(whole) // 2], whole[:-1]]
    damaged += [whole[:20] + b"\x00" + whole[21:], whole[:-8] + b"\x00" * 8] if ending == ".gz" else []
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(DataError, match="data are cut off or damaged"):
            rows(path)
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(DataError, match=rf"it is named {ending} but holds no \w+ data \(rename it to \.jsonl, or pack"):
        rows(path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_two_packed_files_joined_are_one(tmp_path: Path, ending: str) -> None:
    """Both formats allow it, and a reader that stops after the first loses rows."""
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(PACK[ending](b'{"a": 1}\n') + PACK[ending](b'{"a": 2}\n'))
    assert [row.values["a"] for row in rows(path)] == [1, 2]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_packed_rows_are_never_all_in_memory(tmp_path: Path, ending: str) -> None:
    line = json.dumps({"a": "x" * 1000}).encode() + b"\n"
    (tmp_path / f"x.jsonl{ending}").write_bytes(PACK[ending](line * 10_000))
    tracemalloc.start()
    count = sum(1 for _ in JsonLines(tmp_path / f"x.jsonl{ending}").rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000 and peak < 4_000_000


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ('{"a": 1}'.encode("utf-16"), "it is UTF-16, not UTF-8"),
        (b'{\n  "a": 1\n}\n', "its objects are spread over several lines"),
        (b"\n \n", "the file holds only blank lines"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=problem):
        rows(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"no such file: {tmp_path.as_posix()}/none.jsonl")):
        rows(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="it is a folder"):
        rows(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "b/c.ndjson", "D.JSONL", "a.jsonl.gz", "a.ndjson.gz", "a.jsonl.zst"])
def test_claims_its_files(name: str) -> None:
    claim = claims(name)
    assert claim is not None and claim.strength == 2


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.gz", "org/name", "https://example.org/a.jsonl", ""])
def test_leaves_other_files(name: str) -> None:
    assert claims(name) is None


@pytest.mark.parametrize(
    ("name", "source"), [("x.jsonl", "jsonl"), ("x.jsonl.gz", "jsonl"), ("x.json", "tables"), ("x.json.gz", "tables")]
)
@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1},\n {"a": 2}]\n',
        '[{"a": 1}, {"a": 2}]',
        '[\n{"a": 1},\n{"a": 2}]',
        '\ufeff\n{"a": 1}\n\n{"a": 2}\n',
        '{"a": 1}\r\n{"a": 2}',
    ],
)
def test_lines_and_arrays_are_read_under_either_name(tmp_path: Path, name: str, source: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    notes: list[str] = []
    context = FakeContext(tmp_path, notes=notes, installed=True)
    found = context.build("source", {"name": source, "path": str(path)})
    assert [dict(row.values) for row in found.rows()] == [{"a": 1}, {"a": 2}]
    odd = ("[" in content) == (".jsonl" in name)
    assert [note for note in notes if "not what its name says" in note] == notes[: int(odd)]


def test_a_first_line_that_is_an_array_is_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('[1, 2]\n{"a": 1}\n')
    with pytest.raises(DataError, match="1 broken line, 1 good: line 1: an array, not an object"):
        list(FakeContext(tmp_path, installed=True).build("source", {"name": "jsonl", "path": str(path)}).rows())
