"""Several torch optimizers that stand for one: each has parameter groups of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from finetooth_torchshared.by_parameter import loss_of


class Chained(torch.optim.Optimizer):
    """Steps its parts one after the other. Groups and states are shared with them, so that who sets a rate, saves or
    restores sees one optimizer.

    Args:
        parts: over different parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = tuple(parts)
        self._share()

    def _share(self) -> None:
        rest = self.param_groups
        for part in self._parts:
            count = len(part.param_groups)
            part.param_groups, rest = rest[:count], rest[count:]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; returns what `closure`, called first, returned."""
        loss = loss_of(closure)
        for part in self._parts:
            part.step()
        return loss


__all__ = ["Chained"]
