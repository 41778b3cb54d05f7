"""A manifest is read as if a stranger had written it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from finetooth_toolbox.files.manifests import (
    LARGEST,
    ListedFile,
    ManifestProblem,
    check_folder,
    check_name,
    folder_files,
    listed_files,
    read_manifest,
)
from hypothesis import given
from hypothesis import strategies as st

SHA = hashlib.sha256(b"x").hexdigest()


def manifest(**files: Any) -> bytes:
    return json.dumps({"files": files}).encode()


def test_both_ways_to_list_a_file() -> None:
    found = listed_files(manifest(**{"engine/a.bin": SHA, "b": {"sha256": SHA, "size": 1, "more": True}}))
    assert found == {"engine/a.bin": ListedFile(SHA), "b": ListedFile(SHA, 1)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"files": []}',
        b'{"files": {}}',
        b'{"files": {"a": 1, "a": 2}}',
        b"[" * 200_000,
        manifest(a=SHA.upper()),
        manifest(a=SHA[:-1]),
        manifest(a=None),
        manifest(a={"size": 1}),
        manifest(a={"sha256": SHA, "size": True}),
        manifest(a={"sha256": SHA, "size": 1.5}),
        manifest(a={"sha256": SHA, "size": LARGEST + 1}),
        manifest(**{"Manifest.json": SHA}),
        manifest(**{"a": SHA, "A/b": SHA}),
        b" " * (64 * 2**20 + 1),
    ],
)
def test_what_cannot_be_a_manifest_is_refused_on_one_line(content: bytes) -> None:
    with pytest.raises(ManifestProblem) as refused:
        listed_files(content)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@given(st.text(max_size=12) | st.from_regex(r"[a-z./\\~: ]{1,8}", fullmatch=True))
def test_a_listed_path_stays_inside_on_every_system(path: str) -> None:
    """What is let pass means one place inside the folder, to POSIX, to Windows, and whatever the case."""
    try:
        listed_files(manifest(**{path: SHA}))
    except ManifestProblem:
        return
    parts = path.split("/")
    assert os.path.normpath(path) == path and not os.path.isabs(path)  # noqa: PTH117
    assert all(part and part not in (".", "..") and part.isascii() and part.isprintable() for part in parts)
    assert not set(path) & set('\\:*?"<>| ') and path.lower() != "manifest.json"


@given(st.text(max_size=10))
def test_a_name_is_one_part_of_a_path(name: str) -> None:
    try:
        check_name(name)
    except ManifestProblem:
        return
    assert Path(name).name == name and not name.startswith((".", "-"))


def test_a_whole_folder_and_what_can_be_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/a").write_bytes(b"x")
    (tmp_path / "manifest.json").write_bytes(manifest(**{"engine/a": {"sha256": SHA, "size": 1}}))
    assert check_folder(tmp_path) == {"engine/a": ListedFile(SHA, 1)}
    assert list(folder_files(tmp_path)) == ["engine/a"]
    (tmp_path / "engine/a").write_bytes(b"y")
    with pytest.raises(ManifestProblem, match="engine/a differs"):
        check_folder(tmp_path)
    (tmp_path / "engine/a").write_bytes(b"xx")
    with pytest.raises(ManifestProblem, match="has 2 bytes instead of 1"):
        check_folder(tmp_path)
    (tmp_path / "engine/a").unlink()
    with pytest.raises(ManifestProblem, match="engine/a is missing"):
        check_folder(tmp_path)


@pytest.mark.parametrize("odd", ["link", "folder link", "pipe", "name", "case", "hidden"])
def test_what_is_no_plain_file_is_refused(odd: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    if odd == "link":
        (tmp_path / "b").symlink_to("a")
    elif odd == "folder link":
        (tmp_path / "b").symlink_to(tmp_path.parent)
    elif odd == "pipe":
        os.mkfifo(tmp_path / "b")
    else:
        (tmp_path / {"name": "b c", "case": "A", "hidden": ".b"}[odd]).write_bytes(b"x")
    with pytest.raises(ManifestProblem):
        folder_files(tmp_path)


def test_a_manifest_that_is_a_link_or_a_pipe_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(manifest(a=SHA))
    (tmp_path / "manifest.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestProblem, match="is not a file"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")  # opening it would wait for ever
    with pytest.raises(ManifestProblem, match="is not a file"):
        read_manifest(tmp_path)
