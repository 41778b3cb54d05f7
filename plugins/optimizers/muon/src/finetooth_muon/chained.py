"""Several torch optimizers as one, each with its own parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from finetooth_torchshared.by_parameter import loss_of


class Chained(torch.optim.Optimizer):
    """Steps its parts one after the other. It shares groups and states with them, so that setting a rate, saving and
    restoring work as with one optimizer. A part has the groups of its `kind`, also later replacements of them, for
    example if an adapter's parameters get separate rates.

    Args:
        parts: over different parameters, each with groups of one `kind`.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = {part.param_groups[0]["kind"]: part for part in parts}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; calls `closure` first and returns its result."""
        loss = loss_of(closure)
        for kind, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["kind"] == kind]
            part.state = self.state
            part.step()
        return loss


__all__ = ["Chained"]
