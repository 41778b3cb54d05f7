"""The layer of a LoRA over a linear module of MLX, plain or quantised."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetooth_mlx.dropout import Draws


class LowRankLinear(nn.Module):  # type: ignore[misc]  # MLX's modules bring no types
    """y = base(x) + scale (x A^T) B^T, A (rank, inputs) and B (outputs, rank) in fp32 whatever the base is held in.

    Attributes:
        enabled: the addition is computed.
        site: path of the module, which keys its dropout.
        draws: what is dropped at the moment.
    """

    def __init__(
        self, base: Any, rank: int, scale: float, dropout: float, site: str, draws: Draws,
        generator: np.random.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = base
        self.scale, self.dropout, self.site, self.draws, self.enabled = scale, dropout, site, draws, True
        outputs, inputs = shape_of(base)
        bound = 1 / math.sqrt(inputs)  # as peft: uniform, and B zero
        self.lora_a = mx.array(generator.uniform(-bound, bound, size=(rank, inputs)).astype(np.float32))
        self.lora_b = mx.zeros((outputs, rank), mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        if not self.enabled:
            return y
        narrow = x.astype(self.lora_a.dtype)
        if self.dropout and self.training:
            narrow = self.draws.dropped(narrow, self.dropout, self.site)
        added = (narrow @ self.lora_a.T) @ self.lora_b.T
        return y + (self.scale * added).astype(y.dtype)


def is_linear(module: Any) -> bool:
    """A module that can carry an addition."""
    return isinstance(module, nn.Linear | nn.QuantizedLinear)


def shape_of(module: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear module."""
    outputs, inputs = module.weight.shape
    return int(outputs), inputs * 32 // module.bits if isinstance(module, nn.QuantizedLinear) else inputs
