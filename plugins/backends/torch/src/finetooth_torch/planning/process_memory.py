"""Bytes that this process has taken."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory(device: object) -> int:
    """Peak bytes: of the process's resident set on the host, of torch's allocator on an accelerator."""
    import torch

    device = torch.device(str(device))
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return host_memory("VmHWM")


def host_memory(field: str) -> int:
    """Bytes of this process: `VmHWM` is the peak of its resident set, `VmRSS` what it holds now."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource  # elsewhere (macOS) only the peak is known, in bytes there

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
