"""Every point that a server promises has tests, and these are there."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("plugins/services/*/tests", "tests/*")


def _points() -> dict[str, tuple[str, ...]]:
    spec = importlib.util.spec_from_file_location("finetooth_service_points", Path(__file__).with_name("points.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {f"{part}: {point}": tests for part, points in module.POINTS.items() for point, tests in points.items()}


@cache
def _functions(file: Path) -> frozenset[str]:
    """Names of the functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def _attacks() -> frozenset[str]:
    """Names of the attacks, as they are decorated."""
    found = set()
    for file in (ROOT / "tests/attacks/attacking").glob("*.py"):
        for one in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(one, ast.FunctionDef):
                calls = [made.func for made in one.decorator_list if isinstance(made, ast.Call)]
                found |= {one.name for called in calls if isinstance(called, ast.Name) and called.id == "attack"}
    return frozenset(found)


@pytest.mark.parametrize("point", _points())
def test_a_point_is_held_by_tests_that_are_there(point: str) -> None:
    tests = _points()[point]
    assert tests and len(set(tests)) == len(tests)
    for test in tests:
        name, _, function = test.partition("::")
        if name == "attack":
            assert function in _attacks(), test
            continue
        files = [file for place in PLACES for file in ROOT.glob(f"{place}/{name}.py")]
        assert len(files) == 1, f"{test}: {files}"
        assert function.startswith("test_") and function in _functions(files[0]), test
