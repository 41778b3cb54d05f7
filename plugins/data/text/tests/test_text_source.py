"""One document a file, as it is."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from finetooth_hooks import DataError, Row
from finetooth_kit import entries_of, parametrize_with_checks
from finetooth_text.plugin import claims
from finetooth_text.source import TextFiles
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = Path(__file__).parent / "small.txt"
ENTRIES = [dataclasses.replace(e, example={"path": str(SMALL)}) for e in entries_of("finetooth_text.plugin")]


@parametrize_with_checks("finetooth_text.plugin", *ENTRIES)
def test_conforms(check: Any) -> None:
    check()


def rows(path: Path, notes: list[str] | None = None) -> list[Row]:
    return list(TextFiles(path, [].append if notes is None else notes.append).rows())


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: text.strip() and not text.startswith("\ufeff")))
def test_the_text_is_the_files(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "x.txt"
    path.write_bytes(text.encode("utf-8"))
    assert rows(path) == [Row(path.as_posix(), {"text": text})]


def test_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/y.TXT", "c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [row.values["text"] for row in rows(tmp_path)] == ["a/y.TXT", "a/z.md", "b.txt"]
    claim = claims(str(tmp_path))
    assert claim is not None and claim.strength == 1


def test_files_of_rows_in_a_folder_of_texts_are_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about these rows")
    (tmp_path / "config.json").write_text("{}")
    notes: list[str] = []
    assert len(rows(tmp_path, notes)) == 1 and notes == []
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    assert len(rows(tmp_path, notes)) == 1
    assert len(notes) == 1 and "left out: train.jsonl (name such a file" in notes[0]


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfhello")
    notes: list[str] = []
    assert rows(tmp_path / "x.txt", notes)[0].values == {"text": "hello"}
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b" \n\t", "the file holds only blanks"),
        (b"fine\nnot \xe9 fine", r"x\.txt:2: not UTF-8: byte 0xe9 at offset 9"),
        ("text".encode("utf-16"), "it is UTF-16"),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(DataError, match=problem):
        rows(tmp_path / "x.txt")


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.md.gz").write_bytes(gzip.compress("# é\n".encode()))
    (tmp_path / "b.txt.zst").write_bytes(pa.compress(b"two", codec="zstd", asbytes=True))
    (tmp_path / "c.gz").write_bytes(b"no text")
    assert [row.values["text"] for row in rows(tmp_path)] == ["# é\n", "two"]
    (tmp_path / "a.md.gz").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"a\.md\.gz: it is named \.gz but holds no gzip data"):
        rows(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        rows(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"no \.txt, \.md, \.pdf, \.docx or \.odt file is in the folder"):
        rows(tmp_path)
    assert claims(str(tmp_path)) is None
    assert claims("x.TXT") is not None and claims("x.md.gz") is not None and claims("x.jsonl") is None
    assert claims("https://example.org/x.txt") is None
