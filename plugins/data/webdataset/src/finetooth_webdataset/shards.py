"""Which shards a pattern means."""

from __future__ import annotations

import re
from glob import glob
from pathlib import Path

from finetooth_hooks import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
MOST = 1_000_000
"""More shards than anybody has: a range of a billion is a mistake."""


def shards(pattern: str) -> list[Path]:
    """The files of a pattern: braces in the order they say (`{000..003}` with its leading zeros, `{a,b}`), each also a
    glob (`*`), whose files are sorted.

    Raises:
        DataError: a glob finds nothing, or a range is turned round or far too long.
    """
    paths: list[Path] = []
    for name in _braces(pattern):
        if not any(character in name for character in "*?["):
            paths.append(Path(name))
            continue
        files = sorted(glob(name))  # noqa: PTH207 - an absolute pattern is one of the user's
        if not files:
            raise DataError(name, "no file has such a name", action="check the pattern")
        paths += map(Path, files)
    return paths


def _braces(pattern: str) -> list[str]:
    match = _RANGE.search(pattern) or _CHOICE.search(pattern)
    if match is None:
        return [pattern]
    if match.re is _RANGE:
        first, last = int(match[1]), int(match[2])
        if not first <= last < first + MOST:
            raise DataError(pattern, f"{match[0]} is not a range of shards", action="write {000..123}")
        width = len(match[1]) if match[1].startswith("0") else 0
        parts = [f"{number:0{width}}" for number in range(first, last + 1)]
    else:
        parts = match[1].split(",")
    return [name for part in parts for name in _braces(f"{pattern[: match.start()]}{part}{pattern[match.end() :]}")]
