"""Imports over a listed path find what Python finds, and look into one folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import pytest
from finetooth_toolbox.files.listed_path import listed_path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three folders at the front of the path; each has a part of `acme_shared`, the last two have `acme_twice`."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        (folder / "acme_shared").mkdir(parents=True)
        (folder / "acme_shared" / f"{folder.name}.py").write_text("")
        (folder / f"acme_{folder.name}.py").write_text("")
    for folder in folders[1:]:
        (folder / "acme_twice").mkdir()
        (folder / "acme_twice/__init__.py").write_text(f"place = {folder.name!r}")
    monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
    for name in ("acme_shared", "acme_shared.a", "acme_shared.c", "acme_twice", "acme_a", "acme_c", "acme_late"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folders


def test_the_first_folder_with_the_name_has_the_module(folders: list[Path]) -> None:
    with listed_path():
        assert import_module("acme_twice").place == "b"


def test_other_folders_are_not_asked(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str] | None] = []

    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        asked.append(path)
        return found(name, path)

    found = PathFinder.find_spec
    monkeypatch.setattr(PathFinder, "find_spec", find_spec)
    with listed_path():
        import_module("acme_c")
    assert [str(folders[2])] in asked and None not in asked


def test_a_namespace_package_keeps_all_its_folders(folders: list[Path]) -> None:
    with listed_path():
        import_module("acme_shared.a")
        import_module("acme_shared.c")
        assert list(sys.modules["acme_shared"].__path__) == [str(folder / "acme_shared") for folder in folders]


def test_a_path_that_changes_is_obeyed(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with listed_path():
        monkeypatch.setattr(sys, "path", [str(folders[2]), *sys.path])
        assert import_module("acme_twice").place == "c"


def test_a_module_that_is_written_meanwhile_is_found(folders: list[Path]) -> None:
    with listed_path():
        late = folders[0] / "late"
        late.mkdir()
        (late / "acme_late.py").write_text("")
        sys.path.append(str(late))
        assert import_module("acme_late").__file__ == str(late / "acme_late.py")


def test_an_archive_keeps_its_place(tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    archive = tmp_path / "modules.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("acme_twice.py", "place = 'archive'")
    monkeypatch.setattr(sys, "path", [str(archive), *sys.path])
    with listed_path():
        assert import_module("acme_twice").place == "archive"


def test_the_finder_goes_when_the_block_ends() -> None:
    before = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), listed_path():
        assert len(sys.meta_path) == len(before) + 1
        raise ZeroDivisionError
    assert sys.meta_path == before
