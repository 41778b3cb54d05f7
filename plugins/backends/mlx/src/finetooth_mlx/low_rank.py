"""The LoRA or DoRA layer over a linear module of MLX, plain or quantised."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetooth_mlx.dropout import Draws


class LowRankLinear(nn.Module):  # type: ignore[misc]  # MLX's modules bring no types
    """y = base(x) + scale (x A^T) B^T, A (rank, inputs) and B (outputs, rank) in fp32 for every precision of the base.

    With DoRA (Liu et al., 2024, arXiv:2402.09353, equation 5) the norms of the rows of W + scale B A train separately
    from their direction; the gradient treats the computed norms as constants (section 4.3).

    Attributes:
        enabled: whether the low-rank product is added.
        site: keys its dropout.
        draws: the current dropout masks.
    """

    def __init__(
        self, base: Any, rank: int, scale: float, dropout: float, site: str, draws: Draws,
        generator: np.random.Generator, *, dora: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = base
        self.scale, self.dropout, self.site, self.draws, self.enabled = scale, dropout, site, draws, True
        outputs, inputs = shape_of(base)
        bound = 1 / math.sqrt(inputs)  # as peft: uniform, and B zero
        self.lora_a = mx.array(generator.uniform(-bound, bound, size=(rank, inputs)).astype(np.float32))
        self.lora_b = mx.zeros((outputs, rank), mx.float32)
        if dora:
            self.lora_magnitude_vector = mx.linalg.norm(plain_weight(base), axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)
        if not self.enabled:
            return y
        narrow = x.astype(self.lora_a.dtype)
        drops = self.dropout and self.training
        if drops:
            narrow = self.draws.dropped(narrow, self.dropout, self.site)
        added = self.scale * ((narrow @ self.lora_a.T) @ self.lora_b.T)
        if "lora_magnitude_vector" in self:
            share = lengthened(
                self.lora_magnitude_vector, plain_weight(self.base), self.scale * self.lora_b, self.lora_a
            )
            of_base = self.base(narrow.astype(x.dtype)) if drops else y  # as peft: the change sees what is not dropped
            of_base = of_base - self.base.bias if "bias" in self.base else of_base
            added = (share - 1) * of_base + share * added
        return y + added.astype(y.dtype)


def lengthened(lengths: mx.array, weight: mx.array, b: mx.array, a: mx.array) -> mx.array:
    """(outputs,) factors that give the rows of W + B A these norms."""
    return lengths / mx.stop_gradient(mx.linalg.norm(weight + b @ a, axis=1))


def head_of(embedding: Any) -> Any:
    """A language-model head tied to an embedding, plain or quantised: it uses the same arrays."""
    kind: Any = nn.QuantizedLinear if in_few_bits(embedding) else nn.Linear
    head = kind.__new__(kind)
    nn.Module.__init__(head)
    for name, array in embedding.items():
        head[name] = array
    if in_few_bits(embedding):
        head.group_size, head.bits, head.mode = embedding.group_size, embedding.bits, embedding.mode
    head.freeze()
    return head.eval()


def is_linear(module: Any) -> bool:
    """A module that can have a low-rank layer."""
    return isinstance(module, nn.Linear | nn.QuantizedLinear)


def in_few_bits(module: Any) -> bool:
    """A module whose weight is quantised."""
    return isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)


def plain_weight(module: Any) -> mx.array:
    """(outputs, inputs) the module's weight, dequantised, in fp32."""
    if not in_few_bits(module):
        weight: mx.array = module.weight
        return weight.astype(mx.float32)
    return mx.dequantize(
        module.weight, module.scales, module.get("biases"), group_size=module.group_size, bits=module.bits,
        mode=module.mode,
    ).astype(mx.float32)  # fmt: skip


def shape_of(module: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear module."""
    outputs, inputs = module.weight.shape
    return int(outputs), inputs * 32 // module.bits if isinstance(module, nn.QuantizedLinear) else inputs
