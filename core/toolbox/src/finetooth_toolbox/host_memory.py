"""How much memory the machine has, and how much of it this process could have; no framework is imported."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

PROC = Path("/proc")
"""Where Linux tells of processes and memory."""
GROUP = Path("/sys/fs/cgroup")
"""Where it tells of the control group that a container is."""


def total_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's limit if that is lower; 0 where the
    system does not tell."""
    if platform.system() == "Darwin":
        return int(sysctl("hw.memsize") or 0)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
    limit = _number(GROUP / "memory.max")
    return memory if limit is None else min(memory, limit)


def available_memory(proc: Path = PROC, group: Path = GROUP) -> int | None:
    """Bytes this process could hold now: what the system can give without swapping, or what is left of its control
    group's limit if that is less, and what it holds already; None where the system does not tell.

    Args:
        proc, group: where Linux tells of processes and memory, and of the control group.
    """
    left = _kibibytes(proc / "meminfo", "MemAvailable")
    if left is None:
        return None
    limit, taken = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and taken is not None:
        files = sum(_value(group / "memory.stat", f"{kind}_file") or 0 for kind in ("active", "inactive"))
        left = min(left, limit - taken + files)  # pages of files give way
    return max(0, left) + (_kibibytes(proc / "self" / "status", "VmRSS") or 0)


def _kibibytes(path: Path, field: str) -> int | None:
    kilobytes = _value(path, f"{field}:")
    return None if kilobytes is None else kilobytes * 1024


def _value(path: Path, field: str) -> int | None:
    """The number behind a field, in a file of one field a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    parts = next((line.split() for line in lines if line.split()[:1] == [field]), [])
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None


def _number(path: Path) -> int | None:
    """A file's only number; None if it is not there, or says `max`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def sysctl(name: str) -> str:
    """What macOS says of itself under this name; empty elsewhere."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
