"""The columns of the rows that a configuration names, where they are in a file in its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST = 1 << 22
"""Characters of a file that are looked at; a first row beyond them is not known."""


def first_row(named: Any, folder: Path | None) -> Mapping[str, Any]:
    """The first row of a file; empty where the rows are elsewhere, or the file cannot be read.

    Args:
        named: what the configuration says, a path, several of which the first one is read, or something else.
        folder: where the configuration lies; relative paths are looked for there, and where one stands.
    """
    named = named[0] if isinstance(named, list) and named else named
    if not isinstance(named, str) or folder is None:
        return {}
    for place in (folder / named, Path(named)):
        try:
            with place.open(encoding="utf-8", newline="") as file:
                row = _first(place.suffix.lower(), file.read(LONGEST))
        except (OSError, ValueError):
            continue
        return row if isinstance(row, dict) else {}
    return {}


def _first(ending: str, text: str) -> Any:
    """
    Raises:
        ValueError: it is not what its name says.
    """
    if ending in (".csv", ".tsv"):
        return next(csv.DictReader(text.splitlines(), delimiter="\t" if ending == ".tsv" else ","), {})
    if ending in (".jsonl", ".ndjson") or (ending == ".json" and text.lstrip()[:1] == "{"):
        return json.loads(next((line for line in text.splitlines() if line.strip()), "{}"))
    if ending == ".json":
        listed = text.lstrip().removeprefix("[").lstrip()
        return json.JSONDecoder().raw_decode(listed)[0] if listed[:1] == "{" else {}
    return {}
