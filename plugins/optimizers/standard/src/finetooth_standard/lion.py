"""Lion (Chen et al., 2023, Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; returns what `closure`, called first, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum, gradient = state["momentum"], parameter.grad
                direction = momentum.mul(beta1).add_(gradient, alpha=1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"])
                momentum.mul_(beta2).add_(gradient, alpha=1 - beta2)
        return loss
