"""The plan shows what the data files are, and a recipe that pins them refuses others."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, FinetoothError
from finetooth_rows.storage.pins import corpus_sha256

Prepare = Callable[..., Any]
Write = Callable[..., Path]

LINES = [f"row number {i}" for i in range(20)]
FEW = LINES[:3]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source(name: str = "toy_portions", path: str = "rows.txt", **more: Any) -> dict[str, Any]:
    return {"name": name, "path": path, **more}


@pytest.mark.parametrize("lines", [LINES, FEW])
def test_a_pinned_file_that_changed_is_refused_with_both_hashes(
    lines: list[str], prepare: Prepare, write: Write, context_of: Prepare, rendering_of: Prepare
) -> None:
    first = sha256(write(lines))
    _, context = prepare()
    assert context.decisions["data.train.sha256"].value == first
    _, context = prepare(data={"train": source(sha256=first.upper())})
    assert context.decisions["data.train.sha256"].reason == "rows.txt, as the recipe pins it"
    second = sha256(write([*lines, "one more"]))
    with pytest.raises(DataError, match="changed"):  # rows that are trained as they come, too
        old = context_of(data={"train": source(sha256=first)})
        next(iter(old.stream("train", rendering_of(old))))
    with pytest.raises(DataError) as told:
        prepare(data={"train": source(sha256=first)})
    assert str(told.value) == (
        f"data.train.sha256: rows.txt changed: the recipe pins {first}, found is {second} (restore the data, or set "
        "data.train.sha256 to what was found)"
    )


def folder_of(plugin: Path) -> None:
    """Let the toy read a folder of files."""
    text = plugin.read_text()
    text = text.replace("return (self.path,)", "return tuple(sorted(self.path.glob('*/*')))")
    text = text.replace(
        "self.path.read_text().splitlines()", "[x for p in self.files() for x in p.read_text().splitlines()]"
    )
    plugin.write_text(text)


def test_files_of_a_folder_are_pinned_one_by_one_or_together(prepare: Prepare, write: Write, folder: Path) -> None:
    folder_of(folder / "preparation_plugin.py")
    for name in ("a", "b"):
        (folder / "corpus" / name).mkdir(parents=True)
        write(["some", f"of {name}"], f"corpus/{name}/rows.txt")
    hashes = {f"{name}/rows.txt": sha256(folder / "corpus" / name / "rows.txt") for name in ("a", "b")}

    def run(pin: Any) -> Any:
        return prepare(data={"train": source("toy_plain", "corpus", sha256=pin)})[1].decisions["data.train.sha256"]

    shown = run(hashes)
    peer = subprocess.run(  # what a user gets in a shell
        "sha256sum a/rows.txt b/rows.txt | sort | sha256sum", shell=True, capture_output=True, text=True, check=True,
        cwd=folder / "corpus",
    ).stdout.split()[0]  # fmt: skip
    assert shown.value == peer == corpus_sha256(hashes.items())
    assert shown.reason.startswith(f"2 files: a/rows.txt {hashes['a/rows.txt'][:12]}, b/rows.txt ")
    assert run(shown.value).value == shown.value
    write(["others"], "corpus/b/rows.txt")
    with pytest.raises(DataError, match=f"b/rows.txt changed: the recipe pins {hashes['b/rows.txt']}, found is "):
        run(hashes)
    with pytest.raises(DataError, match=f"2 files: a/rows.txt .* changed: the recipe pins {shown.value}, found is "):
        run(shown.value)
    write(["new"], "corpus/b/new.txt")
    with pytest.raises(DataError, match=r"b/new\.txt is not pinned \(pin it: "):
        run({name: sha256(folder / "corpus" / name) for name in hashes})
    with pytest.raises(DataError, match=r"the pinned file .*gone\.txt is missing \(files: a/rows.txt, b/new.txt"):
        run({"gone.txt": "0" * 64})


def test_a_snapshot_pins_all_files(prepare: Prepare, write: Write, folder: Path) -> None:
    write(LINES)
    write(LINES[3:], "more.txt")

    def run(**snapshot: Any) -> Any:
        data = {"eval": source(path="more.txt"), "snapshot": {"name": "corpus", **snapshot}}
        return prepare(data=data)[1].decisions["data.snapshot"]

    shown = run()
    assert shown.value == corpus_sha256([(name, sha256(folder / name)) for name in ("rows.txt", "more.txt")])
    assert shown.reason == "corpus: 2 files, not pinned: add data.snapshot.sha256"
    assert run(sha256=shown.value).reason == "corpus: 2 files, as the recipe pins it"
    write(LINES, "more.txt")
    with pytest.raises(
        DataError, match=f"the data files are not corpus: the recipe pins {shown.value}, found is"
    ) as told:
        run(sha256=shown.value)
    assert sha256(folder / "more.txt") in str(told.value)


def test_rows_that_nobody_can_name_cannot_be_pinned(prepare: Prepare, write: Write, folder: Path) -> None:
    plugin = folder / "preparation_plugin.py"
    plugin.write_text(plugin.read_text().replace("    def files(", "    def nothing("))
    write(LINES)
    _, context = prepare()
    assert "data.train.sha256" not in context.decisions
    for data in ({"train": source(sha256="0" * 64)}, {"snapshot": {"name": "x"}}):
        with pytest.raises(FinetoothError, match="does not say what its rows are made of, so they cannot be pinned"):
            prepare(data=data)


def test_rows_that_are_made_or_lie_elsewhere_are_known_by_what_decides_them(
    prepare: Prepare, write: Write, folder: Path
) -> None:
    """Options that decide every row, and the identity that a source gives."""
    plugin = folder / "preparation_plugin.py"
    text = plugin.read_text().replace("    def files(", "    def nothing(")
    write(LINES)
    seen = set()
    for said in ("files(self):\n        return ()", *(f"identity(self):\n        return {name!r}" for name in "ab")):
        plugin.write_text(text.replace("    def nothing(", f"    def {said}\n\n    def nothing("))
        seen.add(prepare()[1].decisions["data.train.sha256"].value)
    assert len(seen) == 3 and all(re.fullmatch("[0-9a-f]{64}", one) for one in seen)


@pytest.mark.parametrize("lines", [LINES, FEW])
@pytest.mark.parametrize("chosen", [{}, {"eval": {"fraction": 0.34}}, {"deduplicate": "exact"}])
def test_another_number_of_training_rows_is_refused(
    lines: list[str], chosen: dict[str, Any], prepare: Prepare, write: Write
) -> None:
    """Rows that are held out of them count."""
    write(lines)
    prepare(data={**chosen, "examples": len(lines)})
    with pytest.raises(DataError) as told:
        prepare(data={**chosen, "examples": 2800})
    assert str(told.value) == (
        f"data.examples: the recipe says 2,800 training rows, and there are {len(lines)} (restore the data, or set "
        "data.examples to what was found)"
    )
