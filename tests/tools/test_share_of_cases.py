"""`--share`: of the cases of slow tests every Nth, and what was left out is counted. `--minutes`: none begins later."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    """The root's conftest.py."""
    spec = util.spec_from_file_location("rules_for_every_test", ROOT / "conftest.py")
    assert spec is not None and spec.loader is not None
    made = util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("share", "kept"), [(1, "a0 a1 a2 a3 b0 b1 c0 c1 d"), (2, "a0 a2 b0 b1 c0 c1 d"), (3, "a0 a3 b0 b1 c0 c1 d")]
)
def test_every_nth_case_of_a_slow_test_is_kept(rules: ModuleType, share: int, kept: str) -> None:
    """`a` is slow, `b` is quick, `c` is slow and each of its cases counts, `d` is slow and has one."""
    marks = {"a": ("slow",), "b": (), "c": ("slow", "each"), "d": ("slow",)}
    names = [*(f"test_a[{n}]" for n in range(4)), "test_b[0]", "test_b[1]", "test_c[0]", "test_c[1]", "test_d"]

    def item(name: str) -> Any:
        of = marks[name[5]]
        return SimpleNamespace(nodeid=name, get_closest_marker=lambda mark: mark if mark in of else None)

    left: list[Any] = []
    options = {"--share": share, "--whole": ""}
    config: Any = SimpleNamespace(
        getoption=options.__getitem__,
        hook=SimpleNamespace(pytest_deselected=lambda items: left.extend(items)),
    )
    items = [item(name) for name in names]
    rules.pytest_collection_modifyitems(config, items)
    assert " ".join(one.nodeid[5:].replace("[", "").replace("]", "") for one in items) == kept
    assert len(items) + len(left) == len(names)


@pytest.mark.parametrize(("room", "kept"), [(5, 5), (4, 3)])
def test_what_a_change_reaches_is_kept_whole_within_a_bound(
    rules: ModuleType, monkeypatch: pytest.MonkeyPatch, room: int, kept: int
) -> None:
    """`a` has two slow cases and `b` three, of which a share would keep one each."""
    monkeypatch.setattr(rules, "MOST_WHOLE", room)
    items: Any = [
        SimpleNamespace(
            nodeid=f"{place}/test.py::test[{n}]", get_closest_marker=lambda mark: mark if mark == "slow" else None
        )
        for place, cases in (("a", 2), ("b", 3))
        for n in range(cases)
    ]
    options = {"--share": 6, "--whole": "a/,b/"}
    config: Any = SimpleNamespace(
        getoption=options.__getitem__, hook=SimpleNamespace(pytest_deselected=lambda items: None)
    )
    rules.pytest_collection_modifyitems(config, items)
    assert len(items) == kept


@pytest.mark.parametrize(("minutes", "late"), [(0, False), (10, False), (1e-9, True)])
def test_a_slow_test_that_would_begin_too_late_is_skipped(rules: ModuleType, minutes: float, late: bool) -> None:
    config = SimpleNamespace(getoption={"--minutes": minutes}.__getitem__, stash=pytest.Stash())
    rules.pytest_sessionstart(SimpleNamespace(config=config))

    def skipped(mark: str) -> bool:
        item = SimpleNamespace(
            nodeid="test_x", config=config, get_closest_marker=lambda name: name if name == mark else None
        )
        try:
            rules.pytest_runtest_setup(item)
        except pytest.skip.Exception:
            return True
        return False

    assert (skipped("slow"), skipped("")) == (late, False)
