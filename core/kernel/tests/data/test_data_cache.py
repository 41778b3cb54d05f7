"""The cache: any change gives another key, damage is found, what is kept can be listed and removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, EngineError
from finetooth_hooks.data.preparation import Limit
from finetooth_kit import ByteTokenizer
from finetooth_rows.storage import cache as cache_module
from finetooth_rows.storage.cache import MANIFEST, ROWS, DataCache
from finetooth_rows.storage.key import data_key
from finetooth_toolbox.files.file_hashes import FileHashes, file_sha256

Prepare = Callable[..., Any]
Write = Callable[..., Path]
Make = Callable[..., Any]

LINES = [f"row number {i}" for i in range(20)]
LIMIT = Limit(100, "drop")


@pytest.fixture
def key(context_of: Make, rendering_of: Make) -> Callable[..., str]:
    """The key of `rows.txt`."""

    def make(limit: Limit | None = LIMIT, options: Any = None, tokenizer: Any = None, **given: Any) -> str:
        context = context_of(**given)
        if tokenizer is not None:
            context.base = replace(context.base, tokenizer=tokenizer)
        how = rendering_of(context, **(options or {}))
        return data_key(context.data_parts, context.data.rows("train"), how, limit, DataCache().hashes).value

    return make


def test_any_change_gives_another_key(key: Callable[..., str], write: Write, folder: Path) -> None:
    write(LINES)
    seen = {key()}

    def differs(what: str, **given: Any) -> None:
        found = key(**given)
        assert found not in seen, what
        seen.add(found)

    differs("the limit", limit=Limit(99, "drop"))
    differs("what happens to longer ones", limit=Limit(100, "truncate"))
    differs("no limit", limit=None)
    differs("an option of the rendering", options={"train_on": "all"})
    differs("an option of the format", data={"format": {"name": "toy_lines", "suffix": "!"}})
    differs("an option of the renderer", data={"renderer": {"name": "toy", "suffix": "!"}})
    differs("another source", source="toy_plain")
    differs("an option of the source", data={"train": {"name": "toy_portions", "path": "rows.txt", "portion": 41}})
    differs("the tokenizer", tokenizer=ByteTokenizer(special=("<|pad|>", "<|begin|>", "<|im_end|>", "<|other|>")))
    (folder / "suffix.txt").write_text("a")
    by_file = {"format": {"name": "toy_lines", "suffix": "suffix.txt"}}
    differs("a file that an option names", data=by_file)
    (folder / "suffix.txt").write_text("b")
    differs("the content of that file", data=by_file)
    write([*LINES[:-1], LINES[-1].replace("r", "R", 1)])  # as many bytes, the same times
    differs("one byte")
    plugin = folder / "preparation_plugin.py"
    plugin.write_text(plugin.read_text() + "\n# changed\n")
    differs("code")


def test_what_changes_no_token_changes_no_key(key: Callable[..., str], write: Write) -> None:
    path = write(LINES)
    first = key()
    assert key(train={"batch_size": 3, "seed": 5}, output="elsewhere", data={"workers": 3}) == first
    path.touch()
    assert key() == first


def test_without_files_nothing_is_kept(prepare: Prepare, write: Write, folder: Path) -> None:
    write(LINES)
    plugin = folder / "preparation_plugin.py"
    plugin.write_text(plugin.read_text().replace("def files(", "def not_files("))
    done, context = prepare()
    assert context.decisions["data.cache.train"].value == "off"
    assert "does not say what its rows are made of" in context.decisions["data.cache.train"].reason
    assert len(done.data) == 20 and DataCache().entries() == []


def entry_of(prepare: Prepare) -> tuple[Path, list[Any]]:
    done, _ = prepare(limit=LIMIT)
    (entry,) = DataCache().entries()
    return entry.folder, [(datum.id, datum.targets.tolist()) for datum in done.data]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(b"r\0\0\0o\0\0\0w\0\0\0")  # tokens
    content[at] ^= 1
    path.write_bytes(content)


def reseal(folder: Path, **changed: Any) -> None:
    content = cache_module._unsealed(folder / MANIFEST)
    assert content is not None
    (folder / MANIFEST).write_bytes(cache_module._sealed({**content, **changed}))


@pytest.mark.parametrize("damage", ["cut", "flipped", "no manifest", "manifest", "gone", "no arrow"])
def test_damage_is_found_and_mended(damage: str, prepare: Prepare, write: Write) -> None:
    write(LINES)
    folder, wanted = entry_of(prepare)
    rows, manifest = folder / ROWS, folder / MANIFEST
    if damage == "cut":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif damage == "flipped":
        flip(rows)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace("20", "21"))
    elif damage == "gone":
        rows.unlink()
    else:
        rows.write_bytes(b"x" * rows.stat().st_size)
        reseal(folder, sha256=file_sha256(rows))
    done, context = prepare(limit=LIMIT)
    assert "made now and kept" in context.decisions["data.cache.train"].reason
    assert [(datum.id, datum.targets.tolist()) for datum in done.data] == wanted
    assert len(DataCache().entries()) == 1


def test_a_copy_is_whole(prepare: Prepare, write: Write) -> None:
    write(LINES)
    folder, _ = entry_of(prepare)
    rows = folder / ROWS
    content = rows.read_bytes()
    rows.unlink()
    rows.write_bytes(content)  # other inode, other times
    for _ in range(2):
        assert "from the cache" in prepare(limit=LIMIT)[1].decisions["data.cache.train"].reason


def test_damage_that_the_file_system_hides_is_found_when_it_is_read(prepare: Prepare, write: Write) -> None:
    write(LINES)
    folder, _ = entry_of(prepare)
    flip(folder / ROWS)
    reseal(folder, signature=cache_module.signature(folder / ROWS))
    done, _ = prepare(limit=LIMIT)
    with pytest.raises(EngineError, match=r"are damaged on disk and were removed \(start the run again"):
        list(done.data)
    assert DataCache().entries() == []


def test_a_file_that_changes_meanwhile_is_refused(
    prepare: Prepare, write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(LINES)
    check = FileHashes.check_unchanged

    def later(self: FileHashes) -> None:
        path.write_text(path.read_text() + "more\n")
        check(self)

    monkeypatch.setattr(FileHashes, "check_unchanged", later)
    with pytest.raises(DataError, match=r"rows\.txt: the file changed while it was read"):
        prepare()
    assert DataCache().entries() == []


def test_hashes_are_remembered_only_of_settled_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    hashes = FileHashes(tmp_path / "hashes")
    first = hashes.sha256(path)
    assert first == file_sha256(path) and not (tmp_path / "hashes").exists()  # just written: it may change unseen
    monkeypatch.setattr("finetooth_toolbox.files.file_hashes.SETTLED", 0)
    assert hashes.sha256(path) == first
    (remembered,) = (tmp_path / "hashes").iterdir()
    content = json.loads(remembered.read_text())
    remembered.write_text(json.dumps({**content, "sha256": "it was not read again"}))
    assert FileHashes(tmp_path / "hashes").sha256(path) == "it was not read again"
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time of change
    assert FileHashes(tmp_path / "hashes").sha256(path) == file_sha256(path) != first


def test_two_runs_at_once_make_one_entry(prepare: Prepare, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(LINES)
    keep = DataCache.keep
    nested: list[Any] = []

    def slow(self: DataCache, key: str, folder: Path, **given: Any) -> Any:
        if not nested:
            nested.append(1)
            prepare(limit=LIMIT)  # another run is quicker
        return keep(self, key, folder, **given)

    monkeypatch.setattr(DataCache, "keep", slow)
    done, _ = prepare(limit=LIMIT)
    assert len(done.data) == 20 and len(DataCache().entries()) == 1
    assert not list(DataCache().root.glob("entries/.*"))
