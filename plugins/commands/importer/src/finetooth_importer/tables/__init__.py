"""What keys of other tools mean here, as tables: a file of this folder for each tool."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def of(tool: str) -> Mapping[str, Any]:
    """The tables of a tool, by their names.

    Args:
        tool: the file's name without its ending.
    """
    return tomllib.loads((Path(__file__).parent / f"{tool}.toml").read_text(encoding="utf-8"))


def notes(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Each key with its note, of a table that lists keys under the note that they share."""
    return {key: note for note, keys in groups.items() for key in keys}
