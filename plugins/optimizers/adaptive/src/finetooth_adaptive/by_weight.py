"""Optimizers that derive a rate for each weight from its own gradients."""

from __future__ import annotations

import math

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from torch import Tensor


class AdEMAMix(ByParameter):
    """AdEMAMix (Pagliardini et al., 2024, The AdEMAMix Optimizer: Better, Faster, Older, arXiv:2409.03137, section 3):

        m1 <- b1 m1 + (1 - b1) g;  m2 <- b3 m2 + (1 - b3) g;  v <- b2 v + (1 - b2) g^2
        W <- (1 - lr * wd) W - lr * (m1' + alpha m2) / (sqrt(v') + eps)

    m1' and v' are bias-corrected, m2 is not. Over the first T steps alpha grows linearly, and so does the half-life of
    b3, from that of b1.
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        if not state:
            state["fast"], state["slow"], state["square"] = (torch.zeros_like(weight) for _ in range(3))
        step, (beta1, beta2, beta3) = counted(state), group["betas"]
        alpha, warmup = group["alpha"], group["slow_warmup"]
        if step < warmup:
            alpha, beta3 = alpha * step / warmup, slow_decay(beta1, beta3, step / warmup)
        state["fast"].lerp_(gradient, 1 - beta1)
        state["slow"].lerp_(gradient, 1 - beta3)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = state["square"].sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        direction = state["fast"].div(1 - beta1**step).add_(state["slow"], alpha=alpha)
        decay(weight, group)
        weight.addcdiv_(direction, root, value=-group["lr"])


def slow_decay(begin: float, end: float, part: float) -> float:
    """The decay rate whose half-life is at the share `part` between those of two decay rates (the paper's equation for
    beta3)."""
    if not begin or not end:
        return end * part
    first, last = math.log(begin), math.log(end)
    return min(end, math.exp(first * last / ((1 - part) * last + part * first)))


class Adopt(ByParameter):
    """ADOPT (Taniguchi et al., 2024, ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate,
    arXiv:2411.02853, algorithm 2, with the limit t^(1/4)). The first gradient g0 only makes v = g0^2; then, t from 1:

        m <- b1 m + (1 - b1) clip(g / max(sqrt(v), eps), t^(1/4))
        W <- (1 - lr * wd) W - lr * m
        v <- b2 v + (1 - b2) g^2
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        if not state:
            state["mean"], state["square"] = torch.zeros_like(weight), gradient.square()
            counted(state)
            return
        step, (beta1, beta2) = counted(state) - 1, group["betas"]
        limit = step**0.25
        direction = gradient.div(state["square"].sqrt().clamp_min_(group["eps"])).clamp_(-limit, limit)
        state["mean"].lerp_(direction, 1 - beta1)
        decay(weight, group)
        weight.add_(state["mean"], alpha=-group["lr"])
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)


class Came(ByParameter):
    """CAME (Luo et al., 2023, CAME: Confidence-guided Adaptive Memory Efficient Optimization, arXiv:2307.02047,
    algorithm 2). With v the product of its running means over rows and columns, as in Adafactor:

        u <- g / sqrt(v), no larger than `clip` in root mean square;  m <- b1 m + (1 - b1) u
        s <- of (u - m)^2 what v is of g^2, decaying by b3
        W <- (1 - lr * wd) W - lr * m / sqrt(s)

    A tensor of one dimension keeps the whole v, and its step is only m.
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        (beta1, beta2, beta3), (eps1, eps2) = group["betas"], group["eps"]
        factored = weight.ndim >= 2
        if not state:
            state["mean"] = torch.zeros_like(weight)
            if factored:
                for name in ("square", "distance"):
                    state[f"{name}_rows"] = torch.zeros_like(weight[..., :1], memory_format=torch.contiguous_format)
                    state[f"{name}_columns"] = torch.zeros_like(
                        weight[..., :1, :], memory_format=torch.contiguous_format
                    )
            else:
                state["square"] = torch.zeros_like(weight)
        squares = gradient.square().add_(eps1)
        root = (
            factored_root(squares, state, "square", beta2)
            if factored
            else state["square"].lerp_(squares, 1 - beta2).sqrt()
        )
        update = gradient / root
        update.div_(update.square().mean().sqrt_().div_(group["clip"]).clamp_min_(1.0))
        mean = state["mean"].lerp_(update, 1 - beta1)
        decay(weight, group)
        if factored:
            distance = update.sub_(mean).square_().add_(eps2)
            mean = mean / factored_root(distance, state, "distance", beta3)
        weight.add_(mean, alpha=-group["lr"])


def factored_root(values: Tensor, state: Settings, name: str, beta: float) -> Tensor:
    """The root of a running mean of matrices, approximated from its means over rows and columns (Shazeer & Stern, 2018,
    arXiv:1804.04235)."""
    rows = state[f"{name}_rows"].lerp_(values.mean(-1, keepdim=True), 1 - beta)
    columns = state[f"{name}_columns"].lerp_(values.mean(-2, keepdim=True), 1 - beta)
    root: Tensor = (rows / rows.mean(-2, keepdim=True) * columns).sqrt_()
    return root


class Sophia(ByParameter):
    """Sophia (Liu et al., 2023, Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training,
    arXiv:2305.14342, algorithm 3), B targets in a step:

        m <- b1 m + (1 - b1) g;  every k steps, from the first on: h <- b2 h + (1 - b2) B g^2
        W <- (1 - lr * wd) W - lr * clip(m / max(gamma h, eps), 1)

    The paper's estimate of the curvature is B g^2 with gradients for targets sampled from the model; here they are
    those of the data (the empirical Fisher, to which the paper compares it).
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        if not state:
            state["mean"], state["curvature"] = torch.zeros_like(weight), torch.zeros_like(weight)
        step, (beta1, beta2) = counted(state), group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        if (step - 1) % group["update_every"] == 0:
            state["curvature"].mul_(beta2).addcmul_(gradient, gradient, value=(1 - beta2) * group["targets"])
        least = state["curvature"].mul(group["gamma"]).clamp_min_(group["eps"])
        decay(weight, group)
        weight.add_(state["mean"].div(least).clamp_(-1, 1), alpha=-group["lr"])


__all__ = ["AdEMAMix", "Adopt", "Came", "Sophia", "factored_root", "slow_decay"]
