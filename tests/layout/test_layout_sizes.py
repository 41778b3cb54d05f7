"""Tiny is a number: lines of code without docstrings, comments and blank lines; and files of a folder."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = {"core/kernel": 7_500, "hooks/contract": 4_000, "core/toolbox": 3_000}
"""Lines of code that a room may have."""
FILES = 30
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines that hold code."""
    documented = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {n for token in tokens if token.type not in SILENT for n in range(token.start[0], token.end[0] + 1)}
    return len(held - documented)


def test_docstrings_comments_and_blank_lines_are_free() -> None:
    assert code_lines('"""A page\n\nof words."""\n\n# why\nx = (\n    1,  # one\n)\n') == 3


@pytest.mark.parametrize("room", CODE)
def test_a_room_stays_small(room: str) -> None:
    lines = {path: code_lines(path.read_text(encoding="utf-8")) for path in (ROOT / room / "src").rglob("*.py")}
    largest = ", ".join(f"{path.name} {n}" for path, n in Counter(lines).most_common(5))
    assert sum(lines.values()) <= CODE[room], f"{room} has {sum(lines.values())} lines of code; largest: {largest}"


def test_a_folder_can_be_overlooked() -> None:
    sources = [
        path for room in ("core", "hooks", "kernels", "plugins") for path in (ROOT / room).glob("**/src/**/*.py")
    ]
    files = Counter(path.parent.relative_to(ROOT).as_posix() for path in sources)
    assert not {folder: n for folder, n in files.items() if n > FILES}
