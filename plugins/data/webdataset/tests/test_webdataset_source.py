"""Shards written by the tarfile module, whole and broken."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, Row
from finetooth_kit import entries_of, parametrize_with_checks
from finetooth_webdataset import source as source_module
from finetooth_webdataset.plugin import claims
from finetooth_webdataset.shards import shards
from finetooth_webdataset.source import ShardRows
from hypothesis import given, settings
from hypothesis import strategies as st

Files = list[tuple[str, bytes]]


def archive(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


_EXAMPLES = tempfile.TemporaryDirectory()  # as long as the module
SMALL = Path(_EXAMPLES.name) / "small.tar"
SMALL.write_bytes(archive([("a.txt", b"one"), ("a.cls", b"1"), ("b.txt", b"two"), ("b.cls", b"2")]))
ENTRIES = [dataclasses.replace(e, example={"path": str(SMALL)}) for e in entries_of("finetooth_webdataset.plugin")]


@parametrize_with_checks("finetooth_webdataset.plugin", *ENTRIES)
def test_conforms(check: Any) -> None:
    check()


def rows(path: Path | str) -> list[Row]:
    return list(ShardRows(str(path)).rows())


def test_the_files_of_a_key_are_a_row(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "é"}]}
    files = [
        ("x/001.json", json.dumps(chat).encode()),
        ("x/001.JPG", b"\xff\xd8\x00"),
        ("x/001.meta.json", b"[1, null]"),
        ("x/002.txt", b"zwei\n"),
        ("x/002.cls", b"7\n"),
        ("y/002.seg.png", b"\x89PNG"),
    ]
    path = tmp_path / "s.tar"
    path.write_bytes(archive(files))
    assert rows(path) == [
        Row(f"{path}:x/001", {"__key__": "x/001", **chat, "jpg": b"\xff\xd8\x00", "meta.json": [1, None]}),
        Row(f"{path}:x/002", {"__key__": "x/002", "txt": "zwei\n", "cls": 7}),
        Row(f"{path}:y/002", {"__key__": "y/002", "seg.png": b"\x89PNG"}),
    ]


NAMES = st.lists(st.text("abcé-_", min_size=1, max_size=130), min_size=1, max_size=6, unique=True)


@settings(deadline=None)
@given(
    NAMES, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.sampled_from(["", ".gz"]), st.integers(1, 99)
)
def test_what_was_packed_is_read(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], format: int, packed: str, size: int
) -> None:
    """Long names too, which take headers of their own; however the portions are cut."""
    data = archive([(f"{name}.txt", name.encode()) for name in names], format)
    path = tmp_path_factory.getbasetemp() / f"x.tar{packed}"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "PORTION_BYTES", size)
        built = ShardRows(str(path))
        assert "portions" in built.capabilities
        assert [(row.id, row.values["txt"]) for row in built.rows()] == [(f"{path}:{name}", name) for name in names]


@settings(deadline=None)
@given(st.integers(0, 100), st.booleans())
def test_a_cut_shard_is_an_error_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, percent: int, at_block: bool
) -> None:
    """The tarfile module takes an archive that ends between two files, or at a broken header, for a whole one."""
    data = archive([(f"{n:03}.txt", b"x" * 700) for n in range(20)])
    end = 20 * (512 + 1024)  # after the last file; then come zeros
    cut = end * percent // 100
    cut = cut // 512 * 512 if at_block else cut
    path = tmp_path_factory.getbasetemp() / "cut.tar"
    path.write_bytes(data[:cut])
    with pytest.raises(DataError, match=r"cut\.tar: ") as error:
        rows(path)
    assert "\n" not in str(error.value)
    path.write_bytes(data[:end] + b"\0" * 1024)
    assert len(rows(path)) == 20


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    data = bytearray(archive([(f"{n}.txt", b"x") for n in range(4)]))
    data[2 * 1024 + 148] ^= 0xFF  # the checksum of the third
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.tar: a damaged header \(invalid header\), after byte 1,024"):
        rows(tmp_path / "x.tar")


def test_an_archive_of_the_systems_tar(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for n in range(3):
        (tmp_path / f"files/{n}.txt").write_text(str(n))
    try:
        subprocess.run(["tar", "-cf", "x.tar", "-C", "files", "--sort=name", "."], cwd=tmp_path, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no GNU tar here")
    assert [row.values["txt"] for row in rows(tmp_path / "x.tar")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("a.json", b"{")], r"x\.tar: 1 broken row, 0 good: a: \.json: not complete JSON"),
        ([("a.json", b'{"x": NaN}')], r"x\.tar: 1 broken row, 0 good: a: \.json: 'x' is NaN"),
        ([("a.txt", b"\xff")], r"x\.tar: 1 broken row, 0 good: a: \.txt is not UTF-8: byte 0xff at 0"),
        ([("a.cls", b"cat")], r"x\.tar: 1 broken row, 0 good: a: \.cls is 'cat', not a whole number"),
        ([("a.txt", b"1"), ("a.TXT", b"2")], r"x\.tar: 1 broken row, 0 good: a: two columns are named 'txt'"),
        ([("a.json", b'{"txt": 1}'), ("a.txt", b"2")], "two columns are named 'txt'"),
        ([("README", b"1")], r"x\.tar:README: it has no ending"),
        ([("a/._b.jpg", b"1")], r"x\.tar:a/\._b\.jpg: its name begins with a dot"),
        ([], "the archive is empty"),
    ],
)
def test_faults(tmp_path: Path, files: Files, said: str) -> None:
    (tmp_path / "x.tar").write_bytes(archive(files))
    with pytest.raises(DataError, match=said) as error:
        rows(tmp_path / "x.tar")
    assert "\n" not in str(error.value)


def test_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"x\.tar:a\.txt: it is not a plain file"):
        rows(tmp_path / "x.tar")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"x\.tar: a damaged header"):
        rows(tmp_path / "x.tar")
    (tmp_path / "x.tar.gz").write_bytes(archive([("a.txt", b"1")]))
    with pytest.raises(DataError, match=r"named \.gz but holds no gzip data"):
        rows(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match="no such file"):
        rows(tmp_path / "none.tar")


def test_patterns(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"s-{n:03}.tar").write_bytes(archive([("k.txt", str(n).encode())]))
    found = rows(f"{tmp_path}/s-{{000..002}}.tar")
    assert [(row.id, row.values["txt"]) for row in found] == [(f"{tmp_path}/s-{n:03}.tar:k", str(n)) for n in range(3)]
    assert [row.values["txt"] for row in rows(f"{tmp_path}/*.tar")] == ["0", "1", "2"]
    assert [row.values["txt"] for row in rows(f"{tmp_path}/s-{{002,000}}.tar")] == ["2", "0"]
    with pytest.raises(DataError, match=r"no such file: .*s-003\.tar"):
        rows(f"{tmp_path}/s-{{001..003}}.tar")
    with pytest.raises(DataError, match="no file has such a name"):
        rows(f"{tmp_path}/none*.tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}{a,b}", ["08a", "08b", "09a", "09b", "10a", "10b", "11a", "11b"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_as_the_shell_expands_them(pattern: str, names: list[str]) -> None:
    assert [path.name for path in shards(pattern)] == names
    done = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == names or done.returncode


@pytest.mark.parametrize("pattern", ["{3..1}.tar", "{0..9999999999}.tar"])
def test_ranges_that_are_none(pattern: str) -> None:
    with pytest.raises(DataError, match="is not a range of shards"):
        shards(pattern)


def test_a_large_shard_is_never_all_in_memory(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive([(f"{n}.jpg", b"x" * 1_000) for n in range(1_500)]))
    built = ShardRows(str(tmp_path / "x.tar"))
    tracemalloc.start()
    count = sum(1 for _ in built.rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1_500 and peak < 2_000_000


@pytest.mark.parametrize(
    ("reference", "mine"),
    [("a.tar", True), ("s-{000..003}.tar.gz", True), ("a.tar.bz2", False), ("https://a/b.tar", False)],
)
def test_claims(reference: str, mine: bool) -> None:
    assert (claims(reference) is not None) is mine
