"""The contract's number is true: what breaks plugins raises it and is said on the page for authors."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from finetooth_hooks import CONTRACT_VERSION, changes

ROOT = Path(__file__).resolve().parents[2]
OLD = {
    "x.Thing": "class()",
    "x.Thing.size": "int",
    "x.Thing.make": "(self, a: int) -> int",
    "x.Kind": "class(Protocol)",
    "x.Kind.do": "(self) -> None",
    "x.Run": "class(Protocol)",
    "x.Run.log": "(self, text: str) -> None",
    "specs.ft_step": "(run: Run) -> None",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contract_surface", ROOT / "tools/contract_surface.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_broke_since_the_number_was_raised(tool: ModuleType) -> None:
    assert tool.problems() == []


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, 0),
        ({"x.Other": "class()", "x.Thing.name": "str = ''", "x.Run.end": "(self) -> None"}, 0),
        ({"x.Thing.make": "(self, a: int, b: int=0) -> int", "specs.ft_step": "(run: Run, step: int) -> None"}, 0),
        ({"x.Kind.more": "(self) -> None", "bases.KindBase.more": "(self) -> None"}, 0),
        ({"x.Thing.size": None}, 1),
        ({"x.Thing.size": "float"}, 1),
        ({"x.Thing.colour": "str"}, 1),
        ({"x.Thing.make": "(self, a: int, b: int) -> int"}, 1),
        ({"x.Thing.make": "(self, b: int) -> int"}, 1),
        ({"x.Kind.more": "(self) -> None"}, 1),
        ({"x.Kind.do": "(self, how: str='') -> None"}, 1),
        ({"specs.ft_step": None}, 1),
    ],
)
def test_what_breaks_a_plugin_is_seen(tool: ModuleType, change: dict[str, str | None], broken: int) -> None:
    new = {name: text for name, text in {**OLD, **change}.items() if text is not None}
    assert len(tool.breaks(OLD, new)) == broken


def test_a_break_raises_the_number_and_is_told(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "contract.txt"
    lines = tool.RECORD.read_text(encoding="utf-8").splitlines()
    monkeypatch.setattr(tool, "RECORD", record)
    record.write_text("\n".join([*lines, "engine.Engine.nonesuch: (self) -> None"]))
    *_, last = tool.problems()
    assert last == "these break plugins for 2.0.0: keep the old form, or raise the contract to 3.0.0"
    record.write_text(
        "\n".join(["1.0.0", *lines[1:], "engine.Engine.peak_memory: (self) -> int", "engine.Nonesuch: class()"])
    )
    assert tool.problems() == ["engine.Nonesuch is gone: changes.toml has no line of 2.0.0 that names it"]


def test_changes_are_lines_and_end_with_the_number() -> None:
    assert changes.numbers()[-1].partition(".")[0] == CONTRACT_VERSION.partition(".")[0]
    for change in changes.read():
        assert change.marks and "\n" not in change.text and not change.text.endswith(".")
        module, _, rest = change.text.rpartition(": import from ")[0], "", change.text.rpartition("import from ")[2]
        for name in module.split(", ") if module else ():
            assert hasattr(import_module(rest), name), f"{name} is not in {rest}"
