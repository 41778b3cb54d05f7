"""Adam's moments, of a gradient or of what stands for one."""

from __future__ import annotations

import math

import torch
from finetooth_toolbox.torch.by_parameter import Settings
from torch import Tensor


def adam_direction(gradient: Tensor, state: Settings, group: Settings) -> Tensor:
    """Adam's direction for a gradient, m / (sqrt(v) + eps) with both moments freed of their bias (Kingma & Ba, 2015,
    arXiv:1412.6980); the moments are kept in `state`, in the shape of the gradient."""
    beta1, beta2 = group["betas"]
    if "mean" not in state:
        state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    mean, square, step = state["mean"], state["square"], state["step"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    direction: Tensor = mean.div(1 - beta1**step).div_(root)
    return direction


__all__ = ["adam_direction"]
