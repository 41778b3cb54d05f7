"""How a generated page is laid out: blocks, tables, code, and the remark that says who wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from reference.options import cell

WRITTEN = "<!-- Written by tools/make_reference.py from the code; edit the docstrings there, then run `make docs`. -->"


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of ready-made cells."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(cell(text) for text in row)} |" for row in rows]


def python(code: str) -> str:
    """A block of Python."""
    return f"```python\n{code}\n```"


def page(blocks: list[str]) -> str:
    """Blocks with an empty line between them."""
    return "\n\n".join(block for block in blocks if block) + "\n"
