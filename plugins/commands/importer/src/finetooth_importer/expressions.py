"""Plain values of Python's expressions, followed through the names that a script gives them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

UNKNOWN = object()
"""Stands for what is computed."""

Assigned = Mapping[str, list[ast.expr]]
"""What each name of a script becomes, in the order of its lines."""


def assigned(tree: ast.AST) -> dict[str, list[ast.expr]]:
    """All assignments to one name."""
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
    ]
    by_name: dict[str, list[ast.expr]] = {}
    for node in sorted(nodes, key=lambda assignment: assignment.lineno):
        assert isinstance(node.targets[0], ast.Name)
        by_name.setdefault(node.targets[0].id, []).append(node.value)
    return by_name


def called_of(node: ast.Call) -> str:
    """The name of what is called, without what it belongs to."""
    function = node.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def value_of(node: ast.expr, names: Assigned, deep: int = 0) -> Any:
    """A plain value; `UNKNOWN` for what is computed."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(node, ast.Name) and node.id in names and deep < 8:
        return value_of(names[node.id][-1], names, deep + 1)
    return UNKNOWN
