"""`tools/reach.py`: packages that a change can reach, by what packages say that they depend on."""

from __future__ import annotations

from reach import Package, packages, reached

KNOWN = {
    "base": Package("core/base", frozenset()),
    "shared": Package("plugins/shared/shared", frozenset({"base"})),
    "user": Package("plugins/kind/user", frozenset({"shared"})),
    "last": Package("plugins/kind/last", frozenset({"user"})),
    "other": Package("plugins/kind/other", frozenset({"base"})),
    "more": Package("plugins/kind/more", frozenset({"base"})),
    "users": Package("plugins/kind/users", frozenset()),
}


def test_dependants_come_after_what_changed() -> None:
    assert reached(["plugins/kind/user/src/a.py", "docs/a.md"], KNOWN) == ["plugins/kind/user/", "plugins/kind/last/"]
    assert reached(["plugins/shared/shared/src/a.py"], KNOWN)[0] == "plugins/shared/shared/"
    assert len(reached(["plugins/shared/shared/src/a.py"], KNOWN)) == 3


def test_a_test_that_changed_is_reached_itself() -> None:
    assert reached(["tests/runs/test_a.py", "tests/conftest.py"], KNOWN) == ["tests/runs/test_a.py"]


def test_nothing_is_singled_out_where_most_is_reached() -> None:
    assert reached(["core/base/src/a.py", "tests/runs/test_a.py"], KNOWN) == []
    assert reached([], KNOWN) == []


def test_the_workspace_is_read() -> None:
    known = packages()
    assert {"numpy", "pydantic"} <= known["finetooth-hooks"].needs
    assert "plugins/services/mcp/" in reached(["plugins/shared/wire/src/finetooth_wire/wire.py"], known)
    assert reached(["hooks/contract/src/finetooth_hooks/data/datum.py"], known) == []
