"""The optimizers of FlashOptim (Gonzalez Ortiz et al., 2026, arXiv:2602.23349): states in 8 bits by groups of 32.

Each number is a share of the largest one of its group. Levels are denser near 0 than near 1."""

from __future__ import annotations

import math

import torch
from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from finetooth_torchshared.few_bit_states import FewBits
from torch import Tensor

GROUP = 32
"""Count of numbers that share a scale in fp16."""


def _shares(places: Tensor) -> Tensor:
    """Shares of the largest number from codes in 127ths: the inverse of 2 x / (1 + |x|)."""
    stands = places.double() / 127
    return (stands / (2 - stands.abs())).float()


_CODES = torch.arange(-127, 128)
MEAN = FewBits(_shares(_CODES), block=GROUP, smallest=0, between=_shares(_CODES[:-1] + 0.5), scales=torch.float16)
ROOT = FewBits((torch.arange(256).double() / 255).float(), block=GROUP, smallest=0, scales=torch.float16)
"""The code of the root of a second moment."""


class Flash(ByParameter):
    """Adds a direction to each weight. With `decoupled` weight decay is separate, else part of the gradient."""

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        counted(state)
        gradient = gradient.float()
        if group["decoupled"]:
            decay(weight, group)
        else:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        weight.add_(self.direction(gradient, state, group), alpha=-group["lr"])

    def direction(self, gradient: Tensor, state: Settings, group: Settings) -> Tensor:
        """The direction of the update: the gradient, or its running sum.

        Args:
            gradient: fp32.
        """
        momentum: float = group["momentum"]
        if not momentum:
            return gradient
        mean = MEAN.read(state, "mean", gradient).mul_(momentum).add_(gradient)
        MEAN.write(state, "mean", mean)
        return gradient.add(mean, alpha=momentum) if group["nesterov"] else mean


class FlashAdam(Flash):
    """Adam's direction (Kingma & Ba, 2015)."""

    def direction(self, gradient: Tensor, state: Settings, group: Settings) -> Tensor:
        """See `Flash.direction`."""
        step, (beta1, beta2) = state["step"], group["betas"]
        mean = MEAN.read(state, "mean", gradient).lerp_(gradient, 1 - beta1)
        square = ROOT.read(state, "root", gradient).square_().mul_(beta2)
        root = square.addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
        MEAN.write(state, "mean", mean)
        ROOT.write(state, "root", root)
        return mean.div_(1 - beta1**step).div_(root.div_(math.sqrt(1 - beta2**step)).add_(group["eps"]))


class FlashLion(Flash):
    """Lion's direction (Chen et al., 2023, algorithm 2)."""

    def direction(self, gradient: Tensor, state: Settings, group: Settings) -> Tensor:
        """See `Flash.direction`."""
        beta1, beta2 = group["betas"]
        mean = MEAN.read(state, "mean", gradient)
        direction = mean.lerp(gradient, 1 - beta1).sign_()
        MEAN.write(state, "mean", mean.lerp_(gradient, 1 - beta2))
        return direction
