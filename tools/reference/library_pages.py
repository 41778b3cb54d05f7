"""Pages of docs/hooks about code that plugins import besides: shared libraries, and the kernels' operations."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from finetooth_kernels.operations import OPERATIONS, Operation

from reference.classes import signature
from reference.docstrings import parse
from reference.layout import WRITTEN, page, plain_table, python
from reference.workspace import ROOT

LIBRARIES = {
    "toolbox": "core/toolbox/src/finetooth_toolbox",
    "methods": "plugins/shared/methods/src/finetooth_methods",
    "rows": "core/rows/src/finetooth_rows",
    "rollouts": "plugins/shared/rollouts/src/finetooth_rollouts",
    "rendering": "plugins/shared/rendering/src/finetooth_rendering",
    "torchshared": "plugins/shared/torchshared/src/finetooth_torchshared",
    "steps": "kernels/steps/src/finetooth_steps",
}
"""What plugins may import besides the contract, by the name of its page."""


def library_pages() -> Iterator[tuple[str, str]]:
    """Name and text of every page."""
    for name, folder in LIBRARIES.items():
        yield f"library_{name}.md", _library(ROOT / folder)
    yield "operations.md", operations_page()


def _library(folder: Path) -> str:
    lines = [f"# {folder.name}", WRITTEN]
    lines.append(f"What plugins import from `{folder.name}`: each module with its public names, and what they are for.")
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        rows = list(_names(tree))
        if rows and not file.name.startswith("__"):
            module = ".".join(file.relative_to(folder.parent).with_suffix("").parts)
            lines += [f"## {module}", parse(ast.get_docstring(tree, clean=False)).summary]
            lines.append("\n".join(plain_table(("name", "is"), rows)))
    return page(lines)


def _names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        written = f"class {node.name}" if isinstance(node, ast.ClassDef) else signature(node)
        yield f"`{written}`", parse(ast.get_docstring(node, clean=False)).summary


def operations_page() -> str:
    """Every operation of kernels: its arguments, and what it gives back."""
    lines = ["# Operations of kernels", WRITTEN, inspect.getdoc(import_module("finetooth_kernels.operations")) or ""]
    for name, operation in OPERATIONS.items():
        reference = operation.reference
        lines += [f"## {name}", python(_signature(name, reference)), inspect.getdoc(_documented(operation)) or ""]
        lines.append(f"Reference: `{reference.__module__}.{reference.__qualname__}`.")
    return page([_args_as_list(block) for block in lines])


def _documented(operation: Operation) -> Callable[..., Any]:
    """The function that says what the arguments are: the reference, or what it refers to, or torch's way."""
    said = inspect.getdoc(operation.reference) or ""
    if seen := re.match(r"See `(finetooth_kernels\.[\w.]+)\.(\w+)`", said):
        return getattr(import_module(seen[1]), seen[2])  # type: ignore[no-any-return]
    return operation.reference if "Args:" in said or operation.torch is None else operation.torch


def _signature(name: str, reference: Any) -> str:
    node = ast.parse(textwrap.dedent(inspect.getsource(reference))).body[0]
    if isinstance(node, ast.ClassDef):
        node = next(part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
    assert isinstance(node, ast.FunctionDef)
    node.name = name
    return signature(node)


def _args_as_list(block: str) -> str:
    """Sections of a docstring as Markdown lists."""
    if not re.search(r"^(Args|Returns|Raises):$", block, re.MULTILINE) or block.startswith("```"):
        return block
    lines = []
    for line in block.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [f"{line}", ""]
        elif re.match(r" {4}\S", line):
            lines.append(f"- {line.strip()}")
        else:
            lines.append(line.replace("        ", "  ", 1))
    return "\n".join(lines)
