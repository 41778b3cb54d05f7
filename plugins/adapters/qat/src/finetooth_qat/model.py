"""Quantisation-aware training as two functions for any training loop."""

from __future__ import annotations

from typing import Any, Literal

import torch
from finetooth_hooks import QuantizerBase
from finetooth_hooks.protocols import Stored
from finetooth_kernels.integers import quantize_per_channel
from finetooth_torchshared.grouped_linear import Grouped, GroupedLinear
from torch import nn

from finetooth_qat.rounding import RoundedLinear, round_weights

__all__ = ["apply_qat", "convert_qat"]

Bits = Literal[4, 8]


class _Outputs(QuantizerBase):
    """Integers with a scale for each output, 0 among them."""

    def __init__(self, bits: Bits) -> None:
        self.bits, self.stored = bits, Stored(f"int{bits} by outputs", bits / 8)

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """Whether it supports a module: all."""
        return True

    def linear(self, module: Any, *, device: str) -> GroupedLinear:
        """See `protocols.Quantizer`."""
        q, scales, _ = quantize_per_channel(module.weight, self.bits)
        codes = (q.to(torch.int16) + (1 << self.bits - 1)).to(torch.uint8)
        return GroupedLinear(Grouped(codes, scales, None, None, self.bits), module.bias).to(device)


def apply_qat(model: nn.Module, bits: Bits = 8) -> nn.Module:
    """Make the linear modules of a model, except its head, compute with weights rounded to integers with a scale per
    output (Jacob et al., 2018, arXiv:1712.05877, section 3). The weights stay plain numbers and train: the gradient of
    a rounded weight is used for the weight itself.

    Args:
        model: changed in place; its parameters keep their names and objects.
        bits: 4 or 8, of a weight.

    Raises:
        ValueError: other bits, or no linear module.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits: {bits} is neither 4 nor 8")
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if not any(type(module) is nn.Linear and module is not head for module in model.modules()):
        raise ValueError("model: it has no linear module but its head")
    round_weights(model, _Outputs(bits))
    return model


def convert_qat(model: nn.Module, bits: Bits = 8) -> nn.Module:
    """Store the weights that `apply_qat` rounded as integers; the model's outputs are those of training.

    Args:
        model: changed in place. Its `state_dict` holds codes (uint8, the code 2^(bits - 1) is 0) and scales.
        bits: those that it was trained for.

    Raises:
        ValueError: `apply_qat` did not round the model, or for other bits.
    """
    places = [(path, module) for path, module in model.named_modules() if isinstance(module, RoundedLinear)]
    if not places:
        raise ValueError("model: apply_qat did not round it, so there is nothing to convert")
    for path, module in places:
        trained = module.quantizer.stored.bytes_per_weight * 8
        if trained != bits:
            raise ValueError(f"bits: {path} was trained for {trained:g} bits, not for {bits}")
    for path, module in places:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module.quantizer.linear(module, device=str(module.weight.device)))
    return model
