"""Linear modules over the formats, and the formats themselves: how weights become codes and codes become weights.

Codes of 4 bits lie two to a byte, the first of a pair in the lower half. Rounding is to the nearest, of two equally
near to the even code."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from finetooth_torchshared import mxfp4
from finetooth_torchshared.library_formats import best_minima
from finetooth_torchshared.mxfp4 import pairs, singles
from finetooth_torchshared.quantised import RowsApart
from torch import Tensor, nn

Form: TypeAlias = Literal["int8", "int4", "int4_symmetric", "hqq", "mxfp4"]

PIECE = 1 << 19
"""Weights that are encoded at once: what that takes in between is several times as much."""


def grouped(weight: Tensor, group: int) -> Tensor:
    """(outputs, inputs) in fp32 as (outputs, groups, group). A last group that is not full repeats its last weight,
    which changes neither its extremes nor what is stored of the others."""
    weight = weight.detach().float()
    short = -weight.shape[1] % group
    if short:
        weight = torch.cat([weight, weight[:, -1:].expand(-1, short)], 1)
    return weight.reshape(len(weight), -1, group)


class Grouped(RowsApart):
    """A module whose weight is stored group by group.

    Args:
        module: whose weight it is.
        group: weights of an output that share a scale.
    """

    def __init__(self, module: nn.Linear, group: int) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        rows = max(1, PIECE // module.in_features)
        pieces: Any = module.weight.detach().split(rows)  # type: ignore[no-untyped-call]
        stored = [self.encoded(grouped(piece, group)) for piece in pieces]
        for name in stored[0]:
            self.register_buffer(name, torch.cat([piece[name] for piece in stored]))

    @abstractmethod
    def encoded(self, groups: Tensor) -> Mapping[str, Tensor]:
        """What is stored, by buffer; `codes` comes first.

        Args:
            groups: (outputs, groups, group) fp32.
        """

    @abstractmethod
    def decoded(self, rows: slice) -> Tensor:
        """(outputs, groups, group) fp32 of what is stored of these outputs."""

    def dequantised_rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """See `RowsApart`."""
        return self.decoded(slice(first, last)).to(dtype).flatten(1)[:, : self.in_features]


class Int8Linear(Grouped):
    """int8 with the scale max|w| / 127. A group of zeros has the scale 1."""

    codes: Tensor
    scales: Tensor

    def encoded(self, groups: Tensor) -> Mapping[str, Tensor]:
        scales = _scale(groups.abs().amax(-1, keepdim=True) / 127)
        codes = (groups / scales.float()).round().clamp(-127, 127).to(torch.int8)
        return {"codes": codes, "scales": scales}

    def decoded(self, rows: slice) -> Tensor:
        return self.codes[rows].float() * self.scales[rows].float()


class SymmetricInt4Linear(Grouped):
    """-8..7 stored as 0..15; the scale has the sign that makes the weight of greatest magnitude -8."""

    codes: Tensor
    scales: Tensor

    def encoded(self, groups: Tensor) -> Mapping[str, Tensor]:
        least, greatest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scales = _scale(torch.where(-least >= greatest, least, greatest) / -8)
        codes = (groups / scales.float()).round().clamp(-8, 7) + 8
        return {"codes": pairs(codes), "scales": scales}

    def decoded(self, rows: slice) -> Tensor:
        return (singles(self.codes[rows]).float() - 8) * self.scales[rows].float()


class Int4Linear(Grouped):
    """0..15 from a group's least weight to its greatest."""

    codes: Tensor
    scales: Tensor
    minima: Tensor

    def encoded(self, groups: Tensor) -> Mapping[str, Tensor]:
        minima = groups.amin(-1, keepdim=True).bfloat16()
        scales = _scale((groups.amax(-1, keepdim=True) - minima.float()) / 15)
        codes = ((groups - minima.float()) / scales.float()).round().clamp(0, 15)
        return {"codes": pairs(codes), "scales": scales, "minima": minima}

    def decoded(self, rows: slice) -> Tensor:
        return torch.addcmul(self.minima[rows].float(), singles(self.codes[rows]).float(), self.scales[rows].float())


class HqqLinear(Int4Linear):
    """0..15 as `Int4Linear`, with the minima of `library_formats.best_minima`."""

    def encoded(self, groups: Tensor) -> Mapping[str, Tensor]:
        stored = super().encoded(groups)
        scales = stored["scales"].float()
        minima = best_minima(groups, scales, stored["minima"].float(), lambda numbers: numbers.bfloat16().float())
        codes = ((groups - minima) / scales).round().clamp(0, 15)
        return {"codes": pairs(codes), "scales": stored["scales"], "minima": minima.bfloat16()}


class Mxfp4Linear(Grouped):
    """See `finetooth_torchshared.mxfp4`."""

    codes: Tensor
    scales: Tensor

    def encoded(self, groups: Tensor) -> Mapping[str, Tensor]:
        codes, exponents = mxfp4.encoded(groups)
        return {"codes": codes, "scales": exponents}

    def decoded(self, rows: slice) -> Tensor:
        return mxfp4.decoded(self.codes[rows], self.scales[rows])


def _scale(wanted: Tensor) -> Tensor:
    """In bf16; 1 where a group needs none, as it is constant or too small for any."""
    scales = wanted.bfloat16()
    return torch.where(scales == 0, torch.ones_like(scales), scales)


FORMS: Mapping[Form, type[Grouped]] = {
    "int8": Int8Linear, "int4": Int4Linear, "int4_symmetric": SymmetricInt4Linear, "hqq": HqqLinear,
    "mxfp4": Mxfp4Linear,
}  # fmt: skip
"""The module of each format."""
