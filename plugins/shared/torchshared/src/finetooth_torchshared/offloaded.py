"""A torch optimizer whose state is away from its parameters while it is not stepped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from finetooth_hooks.errors import RecipeError
from torch import Tensor

from finetooth_torchshared.kept_elsewhere import in_files, in_host_memory
from finetooth_torchshared.one_by_one import OneByOne, lent

Keep = Callable[[Tensor], Tensor]

HOST = "cpu"
PLACES: Mapping[str, Callable[[], Keep]] = {
    HOST: lambda: in_host_memory,
    "disk": lambda: in_files(Path(tempfile.gettempdir())),
}
"""What makes copies there, by the words of `optimizer.offload`."""


def offloaded(optimizer: torch.optim.Optimizer, where: str) -> OneByOne:
    """
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


__all__ = ["HOST", "PLACES", "offloaded"]
