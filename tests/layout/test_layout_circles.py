"""No module of core, of steps or of the contract needs, in the end, itself; `circles` says what counts as an import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from circles import circles, imports_of

ROOT = Path(__file__).parents[2]
ROOMS = {
    "core/kernel/src/finetooth_core": (),
    "kernels/steps/src/finetooth_steps": (),
    "hooks/contract/src/finetooth_hooks": ("finetooth_kit",),
}


@pytest.mark.parametrize("folder", ROOMS)
def test_a_room_has_no_circles(folder: str) -> None:
    graph = imports_of(ROOT / folder, ROOMS[folder])
    assert len(graph) >= 3 and any(graph.values()), f"{folder} has no modules that import each other: is it there?"
    assert circles(graph) == []


def test_circles_are_found_wherever_the_import_stands(tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "inner").mkdir(parents=True)
    texts = {
        "__init__.py": "",
        "a.py": "from p import b",
        "b.py": "def f():\n    import p.inner.c",
        "inner/__init__.py": "",
        "inner/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import X",
        "d.py": "from p import a",
        "left.py": "from p.out import x",
        "out.py": "from p.left import y",
    }
    for name, text in texts.items():
        (package / name).write_text(text)
    assert circles(imports_of(package, ("p.out",))) == [("p.a", "p.b", "p.inner.c")]
    assert circles(imports_of(package)) == [("p.a", "p.b", "p.inner.c"), ("p.left", "p.out")]
