"""A test names what a module has, also where `pytest.importorskip` hides the module from the type checker."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines()]


@cache
def sources() -> dict[str, Path]:
    """The file of each module of ours, by its dotted name."""
    files = [path for path in tracked("*.py") if "src" in path.relative_to(ROOT).parts]
    parts = ((path, path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return {".".join(at[at.index("src") + 1 :]).removesuffix(".__init__"): path for path, at in parts}


@cache
def names(module: str) -> frozenset[str]:
    """What a module binds anywhere, and the modules of its folder."""
    path = sources()[module]
    bound = {part.stem for part in path.parent.iterdir()} if path.name == "__init__.py" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                bound.add(node.name)
            case ast.Name(ctx=ast.Store()):
                bound.add(node.id)
            case ast.alias():
                bound.add(node.asname or node.name.split(".")[0])
    return frozenset(bound)


def imported_late(tree: ast.Module) -> dict[str, str]:
    """The modules of ours that a file binds by `importorskip` or `import_module`: name to module."""
    found = {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(
                    func=ast.Attribute(attr="importorskip" | "import_module"),
                    args=[ast.Constant(value=str(module)), *_],
                ),
            ) if module in sources():
                found[name] = module
    return found


def unknown(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if "importorskip" not in text and "import_module" not in text:
        return
    tree = ast.parse(text)
    late = imported_late(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in late and not attr.startswith("__"):
                if attr not in names(late[name]):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {late[name]} has no {attr}"


def test_tests_name_what_the_modules_have() -> None:
    assert [line for path in tracked("*.py") if path.exists() for line in unknown(path)] == []


def test_a_name_that_is_not_there_is_found() -> None:
    tree = ast.parse('rows = pytest.importorskip("finetooth_importer.command")\nrows.taken()\nrows.read_tool()')
    assert imported_late(tree) == {"rows": "finetooth_importer.command"}
    assert "taken" not in names("finetooth_importer.command") and "read_tool" in names("finetooth_importer.command")
