"""Prodigy (Mishchenko & Defazio, 2023, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, arXiv:2306.06101,
algorithm 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from finetooth_torchshared.by_parameter import Settings, decay, loss_of
from torch import Tensor


class Prodigy(torch.optim.Optimizer):
    """Adam with the rate lr * d. With x0 the first weights, b3 = sqrt(b2), sums and norms over all weights:

        m <- b1 m + (1 - b1) d g;  v <- b2 v + (1 - b2) d^2 g^2
        r <- b3 r + lr d^2 <g, x0 - W>;  s <- b3 s + lr d^2 g
        W <- (1 - lr * d * wd) W - lr * d * m / (sqrt(v) + d eps)
        d <- max(d, growth * r / |s|)

    d and r are in the groups, and are saved with them.

    Attributes:
        keeps_weights: a state holds the initial weight, not only moments; if the weight is replaced, the whole state is
            dropped.
    """

    keeps_weights = True

    def __init__(self, params: Any, settings: Settings) -> None:
        super().__init__(params, settings)
        for group in self.param_groups:
            group.setdefault("rate", group["first"])
            group.setdefault("gained", 0.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; calls `closure` first and returns its result."""
        loss = loss_of(closure)
        first = self.param_groups[0]
        rate, gained = first["rate"], first["gained"] * math.sqrt(first["betas"][1])
        moved = [
            self._update(weight, weight.grad, group, rate)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        gained += float(sum(gain for gain, _ in moved))
        length = float(sum(length for _, length in moved))
        if length:
            rate = max(rate, first["growth"] * gained / length)
        for group in self.param_groups:
            group["rate"], group["gained"] = rate, gained
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: Settings, rate: float) -> tuple[Tensor, Tensor]:
        """Update one parameter; returns its part of r, and its |s|."""
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            state["mean"], state["square"], state["sum"] = (torch.zeros_like(weight) for _ in range(3))
            state["first"] = weight.clone(memory_format=torch.preserve_format)
        weighed = group["lr"] * rate**2
        gain = torch.sum(gradient * (state["first"] - weight)).double().mul_(weighed)
        state["mean"].mul_(beta1).add_(gradient, alpha=(1 - beta1) * rate)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=(1 - beta2) * rate**2)
        state["sum"].mul_(math.sqrt(beta2)).add_(gradient, alpha=weighed)
        root = state["square"].sqrt().add_(rate * group["eps"])
        decay(weight, {"lr": group["lr"] * rate, "weight_decay": group["weight_decay"]})
        weight.addcdiv_(state["mean"], root, value=-group["lr"] * rate)
        return gain, state["sum"].abs().sum().double()
