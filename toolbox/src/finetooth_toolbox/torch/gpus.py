"""What hardware plugins ask torch about GPUs alike, whoever made them: torch calls all of them `cuda`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

CONTEXT = 512 * 2**20
"""About what a process takes of a GPU before its first tensor, in bytes: code and workspaces. It is taken as soon as
one asks what is free, and memory estimates count it."""


def gpu_available(torch: Any, index: int, total: int) -> int | None:
    """Bytes of a GPU that this process could hold now: what is free, what torch's allocator holds, and the context;
    None where the driver does not tell.

    Asking makes a context on the GPU, so only that which will compute is asked.

    Args:
        torch: the framework.
        total: bytes of the GPU.
    """
    with suppress(RuntimeError):
        free, _ = torch.cuda.mem_get_info(index)
        return min(total, int(free) + int(torch.cuda.memory_reserved(index)) + CONTEXT)
    return None
