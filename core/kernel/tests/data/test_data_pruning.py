"""What is kept can be listed and removed, and stays within a bound; what a process reads is never removed."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks.data.preparation import Limit, Preparation
from finetooth_rows.storage import cache as cache_module
from finetooth_rows.storage import in_use
from finetooth_rows.storage.cache import ABANDONED, MANIFEST, ROWS, CacheEntry, DataCache, prune_cache

Prepare = Callable[..., Any]
Write = Callable[..., Path]

LINES = [f"row number {i}" for i in range(20)]
LENGTHS = (50, 60, 70)


@pytest.fixture
def kept(prepare: Prepare, write: Write) -> list[CacheEntry]:
    """Three entries, last used 10, 1,000 and 100,000 seconds ago."""
    write(LINES)
    for length in LENGTHS:
        prepare(limit=Limit(length, "drop"))
    entries = DataCache().entries()
    assert len(entries) == 3
    for age, entry in zip((10, 1000, 100_000), entries, strict=True):
        os.utime(entry.folder / MANIFEST, (0, time.time() - age))
    return DataCache().entries()


def keys(entries: Any) -> list[str]:
    return [entry.key for entry in entries]


def test_they_are_listed(kept: list[CacheEntry]) -> None:
    assert [entry.rows for entry in kept] == [20] * 3
    assert all(entry.sources == ("rows.txt",) for entry in kept)
    assert all(entry.bytes == (entry.folder / ROWS).stat().st_size for entry in kept)
    assert kept == sorted(kept, key=lambda entry: -entry.used)


def test_by_age(kept: list[CacheEntry]) -> None:
    assert prune_cache(older_than=200_000).removed == ()
    pruned = prune_cache(older_than=500)
    assert keys(pruned.removed) == [kept[2].key, kept[1].key]
    assert keys(DataCache().entries()) == [kept[0].key]
    assert pruned.bytes == kept[0].bytes


def test_by_size(kept: list[CacheEntry]) -> None:
    size = sum(entry.bytes for entry in kept)
    assert prune_cache(keep_bytes=size).removed == ()
    assert keys(prune_cache(keep_bytes=size - 1).removed) == [kept[2].key]
    assert keys(prune_cache(keep_bytes=kept[0].bytes).removed) == [kept[1].key]
    assert keys(DataCache().entries()) == [kept[0].key]


def test_all(kept: list[CacheEntry]) -> None:
    assert len(prune_cache(all=True).removed) == 3
    assert DataCache().entries() == [] and list((DataCache().root / "entries").iterdir()) == []


@pytest.mark.parametrize("given", [{}, {"all": True, "keep_bytes": 0}, {"keep_bytes": 1, "older_than": 1.0}])
def test_one_way_at_a_time(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one of"):
        prune_cache(**given)


def test_an_empty_cache(folder: Path) -> None:
    assert DataCache().entries() == [] and prune_cache(all=True) == cache_module.Pruned()
    assert DataCache(folder / "elsewhere").entries() == []


@pytest.mark.slow
@pytest.mark.skipif(in_use.fcntl is None, reason="no locks")
def test_what_this_process_reads_stays(kept: list[CacheEntry], prepare: Prepare) -> None:
    done, _ = prepare(limit=Limit(LENGTHS[0], "drop"))  # the oldest
    pruned = prune_cache(all=True)
    assert keys(pruned.in_use) == keys(DataCache().entries()) and len(pruned.removed) == 2
    assert pruned.bytes == pruned.in_use[0].bytes
    assert [datum.id for datum in done.data][:2] == ["rows.txt:1", "rows.txt:2"]
    del done, _
    gc.collect()
    assert len(prune_cache(all=True).removed) == 1


READER = """
import sys
from finetooth_rows.storage.cache import DataCache
data = [entry for entry in DataCache().entries() if entry.key == sys.argv[1]][0].data()
print(len(data), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(in_use.fcntl is None, reason="no locks")
def test_what_another_process_reads_stays_until_it_dies(kept: list[CacheEntry]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", READER, kept[2].key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "20\n"
        assert keys(prune_cache(keep_bytes=kept[0].bytes).in_use) == [kept[2].key]
        assert keys(DataCache().entries()) == [kept[2].key]  # the others had to make room for it
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert keys(prune_cache(all=True).removed) == [kept[2].key]


def test_where_nobody_can_tell_the_recent_ones_stay(kept: list[CacheEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    if in_use.fcntl is None:
        monkeypatch.setattr(in_use, "fcntl", None)
    else:

        def unsupported(*given: Any) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(in_use.fcntl, "flock", unsupported)
    assert len(kept[0].data()) == 20
    pruned = prune_cache(all=True)
    assert keys(pruned.removed) == [kept[2].key] and keys(pruned.in_use) == [kept[1].key, kept[0].key]


def test_what_cannot_be_removed_is_said_to_stay(kept: list[CacheEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where an open file cannot be moved, or in a folder that may only be read."""

    def refuse(*given: Any) -> None:
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(Path, "rename", refuse)
    pruned = prune_cache(all=True)
    assert pruned.removed == () and len(pruned.in_use) == len(DataCache().entries()) == 3
    assert all((entry.folder / MANIFEST).exists() for entry in kept)


def test_leftovers_are_swept(kept: list[CacheEntry]) -> None:
    entries = DataCache().root / "entries"
    for name, age in ((".old-1", ABANDONED + 60), (".young-1", 60), (".written-1", ABANDONED + 60)):
        (entries / name).mkdir()
        (entries / name / ROWS).write_bytes(b"half")
        moment = time.time() - age
        if name != ".written-1":  # its folder is old, its file grows
            os.utime(entries / name / ROWS, (moment, moment))
        os.utime(entries / name, (moment, moment))
    (kept[0].folder / MANIFEST).write_text("damaged")
    sealed = cache_module._sealed({"key": kept[1].key, "of": "another version"})
    (kept[1].folder / MANIFEST).write_bytes(sealed)
    assert keys(DataCache().entries()) == [kept[2].key]
    assert prune_cache(older_than=10**9).removed == ()
    assert {path.name for path in entries.iterdir()} == {kept[2].key, ".young-1", ".written-1"}


def reason(context: Any) -> str:
    return str(context.decisions["data.cache.train"].reason)


@pytest.mark.slow
def test_a_run_keeps_the_cache_within_its_bound(prepare: Prepare, write: Write) -> None:
    write(LINES)
    first = prepare(limit=Limit(50, "drop"))[1]  # whose data nobody uses any more
    bound = 1.5 * DataCache().entries()[0].bytes / 1e9
    assert first.notes == []
    gc.collect()
    second = prepare(limit=Limit(60, "drop"), data={"cache_gb": bound})[1]
    (note,) = second.notes
    assert note.startswith("prepared data of 1 earlier run removed (") and "\n" not in note
    assert f"data.cache_gb: {bound:g}" in note
    assert len(DataCache().entries()) == 1
    assert "made now" in reason(prepare(limit=Limit(50, "drop"))[1])


@pytest.mark.slow
def test_the_least_recently_used_goes_first(prepare: Prepare, write: Write) -> None:
    write(LINES)
    for length in (50, 60):
        prepare(limit=Limit(length, "drop"))
    for entry in DataCache().entries():
        os.utime(entry.folder / MANIFEST, (0, time.time() - 1000))
    assert "from the cache" in reason(prepare(limit=Limit(50, "drop"))[1])  # used again
    gc.collect()
    prepare(limit=Limit(70, "drop"), data={"cache_gb": 2.5 * DataCache().entries()[0].bytes / 1e9})
    gc.collect()
    assert "from the cache" in reason(prepare(limit=Limit(50, "drop"))[1])
    assert "made now" in reason(prepare(limit=Limit(60, "drop"))[1])


@pytest.mark.skipif(in_use.fcntl is None, reason="no locks")
def test_what_a_run_has_just_made_stays_and_is_said(prepare: Prepare, write: Write) -> None:
    write(LINES)
    done: Preparation
    done, context = prepare(limit=Limit(50, "drop"), data={"cache_gb": 0})
    assert len(DataCache().entries()) == 1 and len(done.data) == 20
    (note,) = context.notes
    assert note.endswith("more than data.cache_gb: 0, and all of them are in use")


def test_the_bound_does_not_change_the_data(prepare: Prepare, write: Write) -> None:
    write(LINES)
    prepare(limit=Limit(50, "drop"))
    assert "from the cache" in reason(prepare(limit=Limit(50, "drop"), data={"cache_gb": 3})[1])
