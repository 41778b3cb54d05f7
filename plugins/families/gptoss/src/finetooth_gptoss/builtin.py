"""How the system message describes the models' own tools: the words that they were trained with, as in the official
template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_TEXTS = Path(__file__).parent / "texts"

BUILTIN: Mapping[str, str] = {
    name: (_TEXTS / f"{name}.txt").read_text(encoding="utf-8") + "\n" for name in ("browser", "python")
}
"""By name."""
