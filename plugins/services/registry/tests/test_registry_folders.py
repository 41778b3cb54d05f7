"""Folders, records and names that were tampered with, or that a stranger made, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import UserError
from finetooth_registry import records
from finetooth_registry.verifying import verify_folder
from finetooth_saving.origins import RECORD
from registry_place import Place, holds, write_run


def added_file(folder: Path) -> str:
    (folder / "extra").write_text("x")
    return "extra"


def changed_file(folder: Path) -> str:
    (folder / "artifact/weights").write_text("evil")
    return "artifact/weights"


def linked_file(folder: Path) -> str:
    (folder / "artifact/weights").rename(folder.parent / "weights")
    (folder / "artifact/weights").symlink_to(folder.parent / "weights")
    return "artifact/weights"


def removed_file(folder: Path) -> str:
    (folder / "artifact/weights").unlink()
    return "artifact/weights"


@pytest.mark.parametrize("tamper", [added_file, changed_file, linked_file, removed_file], ids=lambda one: one.__name__)
def test_a_folder_that_was_changed_is_named(place: Place, tmp_path: Path, tamper: Any) -> None:
    place.add("one")
    place("get", "bot", str(tmp_path / "out"))
    name = tamper(tmp_path / "out")
    found = holds(verify_folder(tmp_path / "out", place.registry.trusted()))
    assert [what for what, fine in found.items() if not fine] == [name]


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b'{"payload": 1}', b"x" * (17 * 2**20)])
def test_a_record_of_a_stranger_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / RECORD).write_bytes(text)
    with pytest.raises(UserError):
        list(verify_folder(tmp_path, {}))


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b"])
def test_a_record_that_names_files_elsewhere_is_refused(name: str) -> None:
    content = records.statement({name: "0" * 64}, {"name": "bot", "number": 0})
    with pytest.raises(UserError, match="lies outside of its folder"):
        records.read(records.unsigned(content))


@pytest.mark.parametrize("name", ["../out", "/etc/x", "Bot", "b\u043et", "", "a" * 65])
def test_a_name_that_could_mislead_is_refused(place: Place, tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run-x", "one")
    assert isinstance(place("add", str(run), "--name", name).exception, UserError)
    assert place.registry.versions() == []
