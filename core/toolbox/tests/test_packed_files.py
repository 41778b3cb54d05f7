"""Whose a file is by its name, and its bytes whatever it is packed with."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import threading
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finetooth_hooks import DataError
from finetooth_toolbox.files.packed import FOREIGN_KINDS, claim_file, open_bytes, unpacked_name, without_mark
from hypothesis import given, settings
from hypothesis import strategies as st

ENDINGS = (".x", ".x.gz")


def zstandard(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("a.x", "a .x file"),
        ("b/A.X.GZ", "a .x.gz file"),
        ("a.y", None),
        ("", None),
        ("https://example.org/a.x", None),
        ("s-{0..3}.x", "a .x file"),
    ],
)
def test_claims(reference: str, reason: str | None) -> None:
    claim = claim_file(reference, ENDINGS)
    assert (claim and claim.reason) == reason and (claim is None or claim.strength == 2)


@pytest.mark.parametrize(("name", "bare"), [("a.x.gz", "a.x"), ("a.x.ZST", "a.x"), ("a.x", "a.x"), ("gz", "gz")])
def test_names_without_packing(name: str, bare: str) -> None:
    assert unpacked_name(name) == bare


@settings(deadline=None)
@given(
    st.binary(max_size=300).filter(lambda data: not data.startswith(tuple(FOREIGN_KINDS))),
    st.sampled_from(["x", "x.gz", "x.zst"]),
)
def test_bytes_are_those_that_were_packed(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes({"x": bytes, "x.gz": gzip.compress, "x.zst": zstandard}[name](data))
    with open_bytes(path) as file:
        assert file.read() == data
    with open_bytes(path) as file:
        assert list(file) == data.splitlines(keepends=True) or b"\r" in data or b"".join(file) == b""


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.jsonl", '{"a": 1}\n' * 100)
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped(), "it is a ZIP archive (or an office document, which is one) although it is named .jsonl (unpack it"),
        (parquet(), "it is a Parquet file although it is named .jsonl (rename it to .parquet)"),
        (bz2.compress(b"{}"), "it is bzip2 data although it is named .jsonl (unpack it"),
        (lzma.compress(b"{}"), "it is xz data although it is named .jsonl (unpack it"),
        (gzip.compress(b"{}"), "it is gzip data although it is named .jsonl (add .gz to its name)"),
        (zstandard(b"{}"), "it is zstandard data although it is named .jsonl (add .zst to its name)"),
    ],
    ids=str.split("zip parquet bzip2 xz gzip zstandard"),  # no bytes: gzip writes the time
)
def test_a_file_of_another_kind_is_named_as_that(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as told, open_bytes(path):
        pass
    assert str(told.value).startswith(f"{path.as_posix()}: {said}")


def test_a_pipe_is_read_from_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b'{"a": 1}\n',))
    writer.start()
    with open_bytes(path) as file:
        assert file.read() == b'{"a": 1}\n'
    writer.join()


@pytest.mark.parametrize(("name", "pack"), [("x.gz", gzip.compress), ("x.zst", zstandard)])
def test_a_file_that_is_cut_anywhere_is_an_error(tmp_path: Path, name: str, pack: object) -> None:
    assert callable(pack)
    whole = pack(bytes(range(256)) * 20)
    for cut in range(1, len(whole)):
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(DataError) as error, open_bytes(tmp_path / name) as file:
            file.read()
        assert "\n" not in str(error.value) and name in str(error.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "it is a folder"), (tmp_path / "none", "no such file")):
        with pytest.raises(DataError, match=said), open_bytes(path):
            pass


def test_marks_of_encodings() -> None:
    assert without_mark(b"\xef\xbb\xbfab", "x") == (b"ab", True)
    assert without_mark(b"ab", "x") == (b"ab", False)
    with pytest.raises(DataError, match="x: it is UTF-16, not UTF-8"):
        without_mark("ab".encode("utf-16"), "x")
