"""Files that plugins fetched are listed and pruned with prepared data, and never while something uses them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli import main
from finetooth_rows.storage import in_use
from finetooth_rows.storage.cache import DataCache, list_kept, prune_cache
from finetooth_toolbox.files.cache_folder import ABANDONED


@pytest.fixture
def fetched(folder: Path, context_of: Callable[..., Any]) -> list[Path]:
    """Three files as a plugin keeps them, last used 10, 1,000 and 100,000 seconds ago."""
    found = []
    for number, age in enumerate((10, 1000, 100_000), start=1):
        place = context_of().cache / "remote" / "contents" / (f"{number}" * 8) / f"rows{number}.jsonl"
        place.parent.mkdir(parents=True)
        place.write_bytes(b"x" * 100 * number)
        os.utime(place.parent, (0, time.time() - age))
        found.append(place)
    return found


def there(paths: list[Path]) -> list[bool]:
    return [path.exists() for path in paths]


def test_they_are_listed_with_prepared_data(fetched: list[Path], prepare: Any, write: Any) -> None:
    write([f"row {n}" for n in range(20)])
    prepare()
    (entry,) = DataCache().entries()
    kept = list_kept()
    assert kept[0].key == entry.key  # just used
    assert [(one.sources, one.bytes) for one in kept[1:]] == [((f"rows{n}.jsonl",), 100 * n) for n in (1, 2, 3)]


def test_those_used_longest_ago_go_first(fetched: list[Path]) -> None:
    pruned = prune_cache(older_than=50_000)
    assert [one.key for one in pruned.removed] == ["33333333"] and pruned.bytes == 300
    assert there(fetched) == [True, True, False]
    assert prune_cache(keep_bytes=100).bytes == 100 and there(fetched) == [True, False, False]
    assert len(prune_cache(all=True).removed) == 1 and not any(there(fetched))
    assert list((DataCache().root / "plugins/remote/contents").iterdir()) == []


def test_the_bound_on_prepared_data_leaves_them(fetched: list[Path]) -> None:
    assert DataCache().prune(keep_bytes=0).removed == () and all(there(fetched))


@pytest.mark.slow
@pytest.mark.skipif(in_use.fcntl is None, reason="no locks")
def test_what_a_run_uses_stays(fetched: list[Path], context_of: Callable[..., Any]) -> None:
    context = context_of()
    context.hold(fetched[2])
    pruned = prune_cache(all=True)
    assert there(fetched) == [False, False, True] and [one.key for one in pruned.in_use] == ["33333333"]
    assert time.time() - list_kept()[0].used < 1000  # it was used just now
    del context
    gc.collect()
    assert len(prune_cache(all=True).removed) == 1


def test_a_file_that_is_not_there_cannot_be_held(fetched: list[Path], context_of: Callable[..., Any]) -> None:
    with pytest.raises(OSError):
        context_of().hold(fetched[0].with_name("other"))


def test_what_was_never_fetched_to_its_end_goes(fetched: list[Path]) -> None:
    old, young = (fetched[0].parents[2] / name for name in (".partial-1", ".partial-2"))
    for path, age in ((old, ABANDONED + 60), (young, 60)):
        path.write_bytes(b"x")
        os.utime(path, (0, time.time() - age))
    prune_cache(keep_bytes=10**9)
    assert not old.exists() and young.exists() and all(there(fetched))


def test_the_commands_show_them(fetched: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "cache", "list"]) == 0
    out = capsys.readouterr().out
    assert "fetched by remote" in out and "rows3.jsonl" in out and "600 B" in out
    assert main(["data", "cache", "prune", "--older-than", "1d"]) == 0
    assert "removed 1 (300 B); 300 B are left" in capsys.readouterr().out
