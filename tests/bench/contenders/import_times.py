"""What `python -X importtime` writes: which modules a command imports, and what each takes."""

from __future__ import annotations

import re
from typing import Any

LINE = re.compile(r"^import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)\s*$", re.MULTILINE)
"""Microseconds of its own, with what it imports, two spaces for each level, name."""


def summary(text: str, most: int = 12) -> dict[str, Any]:
    """The costliest imports.

    Args:
        text: what the interpreter wrote.
        most: at most so many modules, those that take longest with what they import.

    Returns:
        `modules`, how many were imported; `total_ms`; and `top`, each with `name`, `level` (0 is imported by no other
        module), `cumulative_ms` (with what it imports) and `own_ms`.
    """
    found = [
        {
            "name": name,
            "level": (len(indent) - 1) // 2,
            "cumulative_ms": int(cumulative) / 1000,
            "own_ms": int(own) / 1000,
        }
        for own, cumulative, indent, name in LINE.findall(text)
    ]
    return {
        "modules": len(found),
        "total_ms": round(sum(one["own_ms"] for one in found), 1),
        "top": sorted(found, key=lambda one: -one["cumulative_ms"])[:most],
    }
