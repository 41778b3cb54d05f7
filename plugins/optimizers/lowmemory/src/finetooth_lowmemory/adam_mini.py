"""Adam-mini (Zhang et al., 2024, Adam-mini: Use Fewer Learning Rates To Gain More, arXiv:2406.16793, algorithm 1)."""

from __future__ import annotations

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from torch import Tensor

from finetooth_lowmemory.optimizers import HEADS


class AdamMini(ByParameter):
    """Adam whose second moment is the mean of g^2 over a block: a head of the query and key projections, a row (an
    output, a token) of other matrices, a whole vector.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) mean of g^2 over the block
        W <- (1 - lr * wd) W - lr * m' / (sqrt(v') + eps), both bias-corrected
    """

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        step = counted(state)
        beta1, beta2 = group["betas"]
        blocks = _blocks(weight, group)
        squares = gradient.reshape(blocks, -1).square().mean(1)
        if "mean" not in state:
            state["mean"], state["squares"] = torch.zeros_like(weight), torch.zeros_like(squares)
        mean = state["mean"]
        mean.lerp_(gradient, 1 - beta1)
        state["squares"].lerp_(squares, 1 - beta2)
        root = (state["squares"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        rows = root.repeat_interleave(weight.shape[0] // blocks).reshape(-1, *[1] * (weight.ndim - 1))
        decay(weight, group)
        weight.addcdiv_(mean, rows.expand_as(weight), value=-group["lr"] / (1 - beta1**step))


def _blocks(weight: Tensor, group: Settings) -> int:
    """Number of blocks of rows of a parameter."""
    if weight.ndim < 2:
        return 1
    rows, head = weight.shape[0], group["head_dim"]
    return rows // head if group["kind"] == HEADS and head and rows % head == 0 else rows
