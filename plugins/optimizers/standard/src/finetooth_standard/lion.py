"""Lion (Chen et al., 2023, Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, decay
from torch import Tensor


class Lion(ByParameter):
    """Moves every weight by the sign of a blend of gradient and momentum.

    With gradient g, momentum m, rate lr, weight decay wd:

        p <- p - lr * (sign(beta1 * m + (1 - beta1) * g) + wd * p)
        m <- beta2 * m + (1 - beta2) * g

    Args:
        params: parameters or groups; a group may set `lr`, `betas` and `weight_decay` of its own.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-5,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        beta1, beta2 = group["betas"]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"]
        direction = momentum.mul(beta1).add_(gradient, alpha=1 - beta1).sign_()
        decay(weight, group)
        weight.add_(direction, alpha=-group["lr"])
        momentum.mul_(beta2).add_(gradient, alpha=1 - beta2)
