"""The memory that an engine uses now."""

from __future__ import annotations

import torch
from finetooth_hooks.engine import Usage

from finetooth_torch.planning.process_memory import host_memory, peak_memory


def usage(device: torch.device) -> Usage:
    """Memory of the process on the host; of torch's allocator on an accelerator, where `memory/max_alloc` and
    `memory/max_reserved` (bytes, at the peak) are the used and the reserved memory."""
    peak = peak_memory(device)
    if device.type == "mps":
        return Usage(memory=int(torch.mps.current_allocated_memory()), peak_memory=peak)
    if device.type != "cuda":
        return Usage(memory=host_memory("VmRSS"), peak_memory=peak)
    return Usage(
        memory=int(torch.cuda.memory_allocated(device)),
        peak_memory=peak,
        metrics={
            "memory/max_alloc": float(peak),
            "memory/max_reserved": float(torch.cuda.max_memory_reserved(device)),
        },
    )
