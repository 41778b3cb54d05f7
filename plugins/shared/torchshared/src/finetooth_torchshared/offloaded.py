"""A torch optimizer whose state is away from its parameters while it is not stepped: in host memory, or in files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from finetooth_hooks.errors import RecipeError
from torch import Tensor

from finetooth_torchshared.one_by_one import OneByOne, lent

Keep = Callable[[Tensor], Tensor]


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


HOST = "cpu"
PLACES: Mapping[str, Callable[[], Keep]] = {
    HOST: lambda: in_host_memory,
    "disk": lambda: in_files(Path(tempfile.gettempdir())),
}
"""What makes copies there, by the words of `optimizer.offload`."""


def offloaded(optimizer: torch.optim.Optimizer, where: str) -> OneByOne:
    """Moves the optimizer's state to another place; it then updates one parameter at a time.

    Args:
        where: of `PLACES`.

    Raises:
        RecipeError: no such place, or the optimizer cannot be stepped for one parameter after the other.
    """
    setting = "optimizer.offload"
    if where not in PLACES:
        raise RecipeError(setting, f"unknown place {where!r}", action=f"choose one of {', '.join(PLACES)}")
    if isinstance(optimizer, OneByOne):
        raise RecipeError(setting, "its state is kept elsewhere already", action="give the optimizer as it was before")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise RecipeError(
            setting, "L-BFGS counts for all parameters together", action="take an optimizer such as AdamW"
        )
    keep = PLACES[where]()
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                state[name] = keep(value)
    return OneByOne(optimizer, [lent(keep)], keep)


__all__ = ["HOST", "PLACES", "in_files", "in_host_memory", "offloaded"]
