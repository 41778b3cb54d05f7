"""DoRA (Liu et al., 2024, arXiv:2402.09353): the lengths of the weight's rows train apart from their directions."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

PIECE = 1 << 18
"""Weights of W + s B A that are there at once while rows are measured: in one piece it and B A were twice the weight,
for each module again."""


class DoraLinear(DoraLinearLayer):
    """peft's, without a square of the inputs' width or a product B A as large as the weight, nor a graph of what takes
    no gradient: the paper's section 4.3 holds the length of W + s B A constant in backward."""

    @torch.no_grad()
    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """(O,), the lengths of the rows of W + s B A."""
        whole = torch.add(weight.T if self.fan_in_fan_out else weight, lora_weight, alpha=scaling)
        lengths: Tensor = torch.linalg.vector_norm(whole, dim=1)
        return lengths.to(weight.dtype)

    @torch.no_grad()
    def lengths(self, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """(O,), the same a few rows at a time, in the dtype of the weight.

        Args:
            weight: (O, D).
            a, b: (r, D) and (O, r).
        """
        rows = max(1, PIECE // weight.shape[1])
        norms = []
        for part, of_b in zip(weight.split(rows), b.split(rows), strict=True):  # type: ignore[no-untyped-call]
            whole = torch.add(part, (of_b @ a).to(part.dtype), alpha=scaling)
            norms.append(torch.linalg.vector_norm(whole, dim=1).to(part.dtype))
        return torch.cat(norms)

    def forward(
        self, x: Tensor, *, lora_A: Any, lora_B: Any, scaling: float, base_layer: Any,
        base_result: Tensor | None = None, adapter_name: str = "default",
    ) -> Tensor:  # fmt: skip
        """What is added to the base's output W x + b: (m / |W + s B A| - 1) W x + (m / |W + s B A|) s B A x."""
        weight = dequantize_module_weight(base_layer).to(x.dtype)
        weight = weight.T if self.fan_in_fan_out else weight
        share = (self.weight / self.lengths(weight, lora_A.weight, lora_B.weight, scaling)).view(1, -1)
        added = lora_B(lora_A(x))
        if base_result is None:
            base_result = torch.nn.functional.linear(x, weight)
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        result: Tensor = (share - 1) * base_result + share * added * scaling
        return result
