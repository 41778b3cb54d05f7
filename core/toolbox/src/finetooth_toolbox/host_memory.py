"""Total memory of the machine and available memory for this process, without a framework."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

PROC = Path("/proc")
"""Linux's folder of facts about processes and memory."""
GROUP = Path("/sys/fs/cgroup")
"""Linux's folder of facts about a container's control group."""


def total_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's limit if that is lower; 0 if
    unknown."""
    if platform.system() == "Darwin":
        return int(sysctl("hw.memsize") or 0)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
    limit = _number(GROUP / "memory.max")
    return memory if limit is None else min(memory, limit)


def available_memory(proc: Path = PROC, group: Path = GROUP) -> int | None:
    """Bytes that this process could use now: its present memory, plus free memory without swapping, or the remaining
    limit of its control group if that is less; None if unknown.

    Args:
        proc, group: Linux's folders of facts about processes and memory, and about the control group.
    """
    left = _kibibytes(proc / "meminfo", "MemAvailable")
    if left is None:
        return None
    limit, taken = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and taken is not None:
        files = sum(_value(group / "memory.stat", f"{kind}_file") or 0 for kind in ("active", "inactive"))
        left = min(left, limit - taken + files)  # cached pages of files can be freed
    return max(0, left) + (_kibibytes(proc / "self" / "status", "VmRSS") or 0)


def _kibibytes(path: Path, field: str) -> int | None:
    kilobytes = _value(path, f"{field}:")
    return None if kilobytes is None else kilobytes * 1024


def _value(path: Path, field: str) -> int | None:
    """The number of a field, in a file with one field per line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    parts = next((line.split() for line in lines if line.split()[:1] == [field]), [])
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None


def _number(path: Path) -> int | None:
    """A file's only number; None if the file is missing or contains `max`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def sysctl(name: str) -> str:
    """A system value of macOS by name; empty on other systems."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
