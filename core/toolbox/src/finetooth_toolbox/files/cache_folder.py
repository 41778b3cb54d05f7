"""The folder of prepared data, and functions that write and remove them atomically."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from pathlib import Path

VARIABLE = "FT_CACHE"
ABANDONED = 24 * 3600
"""Seconds after which unfinished files are removed."""


def cache_folder() -> Path:
    """`FT_CACHE`, or `finetooth/data` in the platform's cache folder."""
    folder = os.environ.get(VARIABLE)
    if folder:
        return Path(folder).expanduser().absolute()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "finetooth" / "data"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, so that no reader sees a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def remove_folder(folder: Path) -> bool:
    """Remove a folder atomically, so that no reader finds a part of it.

    Returns:
        Whether it was removed. On a system that cannot move open files, a folder in use stays.
    """
    aside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        folder.rename(aside)
    except OSError:
        return not folder.exists()
    shutil.rmtree(aside, ignore_errors=True)
    return True
