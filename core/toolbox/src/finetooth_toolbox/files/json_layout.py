"""Detects JSON lines or a JSON array in a file, independent of its name, since other tools read both under either
name."""

from __future__ import annotations

import json
from pathlib import Path

from finetooth_hooks.errors import DataError

from finetooth_toolbox.files.packed import open_bytes, without_mark

FIRST_LINE = 1 << 24
"""Largest number of bytes of a first line that is examined."""


def is_array(path: Path) -> bool:
    """Whether the file exists and holds one JSON array."""
    first, second = _start(path)
    return first.startswith(b"[") and not (second and _is_whole(first))


def is_lines(path: Path) -> bool:
    """Whether the file exists, its first line is a complete JSON object, and another object follows."""
    first, second = _start(path)
    return first.startswith(b"{") and second.startswith(b"{") and _is_whole(first)


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _start(path: Path) -> tuple[bytes, bytes]:
    """The first two lines that are not blank, stripped; empty if they are missing, or if the file is unreadable, which
    its reader reports."""
    if not path.is_file():
        return b"", b""
    lines = [b"", b""]
    try:
        with open_bytes(path) as file:
            for place in range(2):
                while line := file.readline(FIRST_LINE):
                    lines[place] = without_mark(line, path.as_posix())[0].strip()
                    if lines[place]:
                        break
    except (DataError, OSError, EOFError):
        return b"", b""
    return lines[0], lines[1]
