"""Places for the state of an optimizer other than the device of its parameters: host memory, files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def in_host_memory(tensor: Tensor) -> Tensor:
    """A copy in host memory, pinned where it comes from an accelerator, so that copies need not wait for each other."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor)


def in_files(folder: Path) -> Callable[[Tensor], Tensor]:
    """What copies a tensor into a file of its own, which the system reads and writes as it does memory. The file has no
    name any more, and goes with its tensor, however the process ends.

    Args:
        folder: on the disk that is meant.
    """

    def keep(tensor: Tensor) -> Tensor:
        like = torch.empty_like(tensor, device="meta")  # dense, and laid out in memory as the tensor is
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            mapped = torch.from_file(file.name, shared=True, size=max(1, tensor.numel()), dtype=tensor.dtype)
        return mapped.as_strided(like.size(), like.stride()).copy_(tensor)

    return keep


__all__ = ["in_files", "in_host_memory"]
