"""Circles of imports among the modules of a package, found in their source.

Every `import` of a module counts, wherever it stands: at the top, inside a function, or under TYPE_CHECKING, since all
of them say that one module cannot be understood without the other. Not counted is what no line says: that importing
`a.b` runs `a/__init__.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Graph = Mapping[str, frozenset[str]]


def imports_of(root: Path, without: Sequence[str] = ()) -> Graph:
    """Which modules of a package each of its modules imports.

    Args:
        root: folder of the package.
        without: subpackages that are left out.
    """
    files: dict[str, Path] = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(f"{name}.".startswith(f"{left}.") for left in without):
            files[name] = file
    return {name: frozenset(_imported(name, file, files)) - {name} for name, file in files.items()}


def _imported(name: str, file: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports by a relative name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else str(node.module)


def circles(graph: Graph) -> list[tuple[str, ...]]:
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            place = path.index(module)
            if len(path) - place > 1:
                found.append(tuple(sorted(path[place:])))
            del path[place:]

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return found
