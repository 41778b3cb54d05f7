"""What the figures were measured on: processor, cores, memory, system, accelerator. No names, no paths."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Facts of this machine."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerator": accelerator(),
    }


def processor() -> str:
    """Model name, with the instruction sets that decide how fast bf16 is."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(reversed([(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines) if v]))
    flags = set(facts.get("flags", "").split())
    known = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return facts.get("model name", platform.machine()) + (f" ({known[0]})" if known else "")


def accelerator() -> str:
    """The NVIDIA GPU, empty without one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().replace("\n", ", ")


def load() -> float:
    """Mean number of waiting processes over the last minute: of a quiet machine below 1."""
    return round(os.getloadavg()[0], 2)
