"""Adam's moments of a gradient or its projection, in fp32 or in 8 bits."""

from __future__ import annotations

import math

import torch
from finetooth_torchshared.by_parameter import Settings
from finetooth_torchshared.few_bit_states import FewBits, dynamic_levels
from torch import Tensor

BLOCK = 256
"""Count of 8-bit numbers that share a scale, as now in bitsandbytes (2048 in Dettmers et al., 2022,
arXiv:2110.02861)."""
MEAN = FewBits(dynamic_levels(8, signed=True), block=BLOCK)
SQUARE = FewBits(dynamic_levels(8, signed=False), block=BLOCK)


def adam_direction(gradient: Tensor, state: Settings, group: Settings) -> Tensor:
    """Adam's direction for a gradient, m / (sqrt(v) + eps) with bias-corrected moments (Kingma & Ba, 2015,
    arXiv:1412.6980), which are in `state` with the gradient's shape."""
    beta1, beta2 = group["betas"]
    if "mean" not in state:
        state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    mean, square, step = state["mean"], state["square"], state["step"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    direction: Tensor = mean.div(1 - beta1**step).div_(root)
    return direction


def adam_direction_8bit(gradient: Tensor, state: Settings, group: Settings) -> Tensor:
    """As `adam_direction`, with moments that are in 8 bits between updates (Dettmers et al., 2022, arXiv:2110.02861);
    those of fewer than 4096 numbers stay in fp32."""
    plain = {"step": state["step"], "mean": MEAN.read(state, "mean", gradient)}
    plain["square"] = SQUARE.read(state, "square", gradient)
    direction = adam_direction(gradient.to(plain["mean"].dtype), plain, group)
    MEAN.write(state, "mean", plain["mean"])
    SQUARE.write(state, "square", plain["square"])
    return direction


def bytes_8bit(numbers: int) -> float:
    """Bytes of both moments in 8 bits for this count of numbers."""
    return MEAN.bytes_of(numbers) + SQUARE.bytes_of(numbers)


__all__ = ["adam_direction", "adam_direction_8bit", "bytes_8bit"]
