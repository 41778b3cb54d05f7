"""The loop of a torch optimizer that updates one parameter after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Settings = dict[str, Any]
"""Options of a parameter group, or the state of a parameter."""


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """The result of a step's closure, called with gradients enabled; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class ByParameter(torch.optim.Optimizer, ABC):
    """An optimizer that updates one parameter after the other, each from its own gradient and state alone, and knows
    each by its place among all as it was made: what is drawn by places stays the same if groups are split later.

    Args:
        params: parameters or groups.
        settings: of each group that sets none of its own.
    """

    def __init__(self, params: Iterable[Any], settings: Settings) -> None:
        super().__init__(params, settings)
        self._places = places_in(self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; calls `closure` first and returns its result."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.update(weight, weight.grad, self.state[weight], group, self._places.get(weight, 1))
        return loss

    def load_state_dict(self, state_dict: Settings) -> None:
        """As `torch.optim.Optimizer.load_state_dict`, but each state keeps its type, even if its weight has another."""
        super().load_state_dict(state_dict)
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for name, weight in zip(names, weights, strict=True):
            for key, saved in state_dict["state"].get(name, {}).items():
                if isinstance(saved, Tensor) and self.state[weight][key].dtype != saved.dtype:
                    self.state[weight][key] = saved.to(weight.device, copy=True)

    @abstractmethod
    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """Update one parameter.

        Args:
            state: its own, empty before its first update.
            place: of the parameter, counted from 1.
        """


def places_in(groups: Iterable[Settings]) -> dict[Tensor, int]:
    """The place of each parameter of some groups, counted from 1."""
    return {weight: place for place, weight in enumerate((w for group in groups for w in group["params"]), start=1)}


def counted(state: Settings) -> int:
    """The number of this update, counted from 1 and kept in the state."""
    state["step"] = state.get("step", 0) + 1
    return int(state["step"])


def decay(weight: Tensor, group: Settings) -> None:
    """Decoupled weight decay."""
    weight.mul_(1 - group["lr"] * group["weight_decay"])


__all__ = ["ByParameter", "Settings", "counted", "decay", "loss_of", "places_in"]
