"""Rows that do not lie in files are kept when their source says which they are; only the first few may be prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError
from finetooth_hooks.data.preparation import Limit
from finetooth_rows.storage.cache import DataCache

Prepare = Callable[..., Any]
Write = Callable[..., Path]

LINES = [f"row number {i}" for i in range(20)]
LIMIT = Limit(100, "drop")


def reason(context: Any) -> str:
    return str(context.decisions["data.cache.train"].reason)


def test_an_identity_stands_for_files(
    prepare: Prepare, write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(LINES)
    plugin = folder / "preparation_plugin.py"
    identity = "\n    def identity(self):\n        return os.environ.get('FT_TEST_IDENTITY')\n"
    plugin.write_text(plugin.read_text().replace("    def files(", f"{identity}\n    def not_files("))
    assert "does not say what its rows are made of" in reason(prepare()[1])
    monkeypatch.setenv("FT_TEST_IDENTITY", "first commit")
    for told in ("made now and kept", "from the cache"):
        done, context = prepare()
        assert told in reason(context) and len(done.data) == 20
    write([*LINES, "one more"])
    monkeypatch.setenv("FT_TEST_IDENTITY", "second commit")
    done, context = prepare()
    assert "made now and kept" in reason(context) and len(done.data) == 21
    assert len(DataCache().entries()) == 2


def test_a_dataset_saved_to_disk(
    prepare: Prepare, context_of: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    if not any(r.entry.name == "datasets" for r in context_of().catalog.all("source")):
        pytest.skip("the source datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hub")

    def save(lines: list[str], name: str) -> None:
        datasets.Dataset.from_dict({"text": lines}).save_to_disk(str(folder / name))

    def run(name: str = "saved", **options: Any) -> tuple[str, list[str]]:
        done, context = prepare(data={"train": {"name": "datasets", "path": name, **options}})
        return reason(context), [bytes(map(int, (d.tokens[0], *d.targets))).decode() for d in done.data]

    save(LINES, "saved")
    for told in ("made now and kept", "from the cache"):
        said, texts = run()
        assert told in said and texts == LINES
    said, texts = run(split="train[:10]")
    assert "made now and kept" in said and texts == LINES[:10]
    changed = [*LINES[:-1], "Row number 19"]
    save(changed, "other")  # as long, but for one letter
    for file in (folder / "other").iterdir():
        file.replace(folder / "saved" / file.name)
    said, texts = run()
    assert "made now and kept" in said and texts == changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "workers"),
    [
        ("toy_portions", 0),
        ("toy_plain", 0),
        ("toy_portions", 2),
        pytest.param("toy_plain", 2, marks=pytest.mark.slow),
    ],
)
def test_the_first_rows_are_those_of_all(
    source: str, workers: int, prepare_first: Callable[..., Any], write: Write
) -> None:
    write(LINES)
    whole, _ = prepare_first(None, source=source, data={"workers": workers})
    expected = [(datum.id, datum.targets.tolist()) for datum in whole.data]
    for count in (4, 19) if workers else (1, 3, 4, 7, 19, 20, 21):  # each starts as many processes
        done, _ = prepare_first(count, source=source, data={"workers": workers, "cache": "off"})
        assert [(datum.id, datum.targets.tolist()) for datum in done.data] == expected[:count]
        assert done.report.rows == done.report.used == min(count, 20)


def test_the_first_rows_have_a_key_of_their_own(prepare_first: Callable[..., Any], write: Write) -> None:
    write(LINES)
    for told in ("made now and kept", "from the cache"):
        for count in (None, 5, 6):
            done, context = prepare_first(count)
            assert told in reason(context) and len(done.data) == (count or 20)


def test_what_is_broken_among_the_first_is_found_and_what_follows_is_not(
    prepare_first: Callable[..., Any], write: Write
) -> None:
    write([*LINES[:6], "!broken", *LINES[6:12], "?malformed", *LINES[12:]])
    done, _ = prepare_first(6)
    assert len(done.data) == 6
    with pytest.raises(DataError, match=r"1 broken, .*rows\.txt:7"):
        prepare_first(7)
    write([*LINES[:12], "?malformed", *LINES[12:], "bad one"])
    assert len(prepare_first(12)[0].data) == 12
    with pytest.raises(DataError, match=r"rows\.txt:13: malformed"):
        prepare_first(13)


def test_few_rows_are_sliced(prepare_first: Callable[..., Any], write: Write) -> None:
    write(LINES[:4])
    done, context = prepare_first(3)
    assert [datum.id for datum in done.data] == [f"rows.txt:{i}" for i in (1, 2, 3)]
    assert "data.cache.train" not in context.decisions


def test_slices_of_many_examples_are_checked(context_of: Callable[..., Any], write: Write) -> None:
    write([*LINES[:9], "?malformed", *LINES[9:]])
    rows = context_of().examples("train").rows
    assert [id_ for id_, _ in rows[:9]] == [f"rows.txt:{i}" for i in range(1, 10)]
    assert [id_ for id_, _ in rows[2:5]] == ["rows.txt:3", "rows.txt:4", "rows.txt:5"]
    with pytest.raises(DataError, match=r"rows\.txt:10: malformed"):
        rows[:10]
