"""Schedule-free learning (Defazio et al., 2024, The Road Less Scheduled, arXiv:2405.15682, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted
from torch import Tensor


class ScheduleFree(ByParameter):
    """With iterates z, their average x, and the weights y of the parameters, at which the gradient g is computed:

        z <- z - lr * (d + wd * y), d the direction of the base optimizer for g
        x <- (1 - c) x + c z, c = w / sum of all w, w = (largest lr so far) ** power
        y <- (1 - beta) z + beta x, beta the interpolation

    d is g for `sgd`; for `adamw` g / (sqrt(v') + eps), v' the bias-corrected second moment. The state is z and v; x
    follows from y and z.
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        if not state:
            state["iterate"] = weight.clone(memory_format=torch.preserve_format)
            if group["base"] == "adamw":
                state["square"] = torch.zeros_like(weight)
        step = counted(state)
        beta, rate, direction = group["interpolation"], group["lr"], gradient
        if group["base"] == "adamw":
            beta2 = group["beta2"]
            state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            direction = gradient / (state["square"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        if group["weight_decay"]:
            direction = direction.add(weight, alpha=group["weight_decay"])
        state["largest"] = max(rate, state.get("largest", 0.0))
        share = state["largest"] ** group["power"]
        state["shares"] = state.get("shares", 0.0) + share
        part = share / state["shares"] if state["shares"] else 0.0
        iterate = state["iterate"]
        # the third line with x = (y - (1 - beta) z) / beta inserted: no difference of large numbers
        weight.lerp_(iterate, part).add_(direction, alpha=-rate * (1 - beta * (1 - part)))
        iterate.sub_(direction, alpha=rate)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the `with` block, the parameters are the averages x; afterwards they are bit for bit y again. y is saved,
    since computing it from x would round."""
    aside: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for group in optimizer.param_groups:
            beta = group["interpolation"]
            for weight in group["params"]:
                iterate = optimizer.state[weight].get("iterate") if weight in optimizer.state else None
                if iterate is not None:
                    aside.append((weight, weight.clone()))
                    weight.sub_(iterate.to(weight.device), alpha=1 - beta).div_(beta)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, copy in aside:
                weight.copy_(copy)


__all__ = ["ScheduleFree", "averaged"]
