"""What experts read that a model holds as one weight: no module of their own is called that could be watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class ExpertInputs(TorchFunctionMode):
    """Inside the `with` block, collects X X^T of what is multiplied by each expert's part of a weight: its code takes
    the part by its number, `weight[expert]`, and gives it to `torch.nn.functional.linear`.

    Args:
        weights: of three axes, (experts, outputs, inputs), by path.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._paths = {id(weight): path for path, weight in weights.items()}
        self._held: dict[int, tuple[Tensor, str, int]] = {}
        """Parts that were taken, by their addresses while they are held."""
        self._hessians: dict[str, dict[int, Tensor]] = {path: {} for path in weights}

    @property
    def any(self) -> bool:
        """Whether there is a weight to watch."""
        return bool(self._paths)

    def taken(self, path: str) -> Mapping[int, Tensor]:
        """(inputs, inputs) fp32 by expert, of those that read anything; they are given away."""
        return self._hessians.pop(path)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.Tensor.__getitem__ and id(args[0]) in self._paths:
            index = args[1]
            if isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0):
                self._held[id(made)] = (made, self._paths[id(args[0])], int(index))
        elif func is nn.functional.linear and len(args) > 1 and id(args[1]) in self._held:
            _, path, expert = self._held.pop(id(args[1]))
            read = args[0].detach().flatten(0, -2).float()
            hessians = self._hessians[path]
            if expert not in hessians:
                hessians[expert] = torch.zeros(read.shape[1], read.shape[1], device=read.device)
            hessians[expert].addmm_(read.t(), read)
        return made
