"""AdamW with moments in 4 bits (Li et al., 2023, Memory Efficient Optimizers with 4-bit States, arXiv:2309.01507)."""

from __future__ import annotations

import math

from finetooth_torchshared.by_parameter import ByParameter, Settings, counted, decay
from finetooth_torchshared.few_bit_states import FewBits, dynamic_levels, even_levels
from torch import Tensor

BLOCK = 128
"""Count of numbers that share a scale, as in the paper."""
MEAN = FewBits(dynamic_levels(4, signed=True), block=BLOCK)
SQUARE = FewBits(even_levels(4), block=BLOCK)
"""Levels of the second moment exclude zero, which would leave only eps as divisor (section 4.1). Scales belong to
blocks, also for matrices, for which the paper uses rows and columns."""


class AdamW4bit(ByParameter):
    """Each update is AdamW's with the moments in fp32 (algorithm 1); only the stored moments are rounded. Tensors of
    fewer than 4096 numbers keep theirs in fp32, as in the paper."""

    def update(self, weight: Tensor, gradient: Tensor, state: Settings, group: Settings, place: int) -> None:
        """See `ByParameter.update`."""
        step, (beta1, beta2) = counted(state), group["betas"]
        decay(weight, group)
        mean, square = MEAN.read(state, "mean", weight), SQUARE.read(state, "square", weight)
        gradient = gradient.to(mean.dtype)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        SQUARE.write(state, "square", square)
        # in place, unless the state already is these numbers
        root = (square.sqrt() if state["square"] is square else square.sqrt_()).div_(math.sqrt(1 - beta2**step))
        weight.addcdiv_(mean, root.add_(group["eps"]), value=-group["lr"] / (1 - beta1**step))
        MEAN.write(state, "mean", mean)


def state_bytes(numbers: int) -> float:
    """Bytes of state of a tensor with this count of numbers."""
    return MEAN.bytes_of(numbers) + SQUARE.bytes_of(numbers)
