"""DoRA (Liu et al., 2024, arXiv:2402.09353): the norms of the weight's rows train separately from their directions."""

from __future__ import annotations

from typing import Any

import torch
from finetooth_kernels.low_rank_linear import row_lengths
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor


class DoraLinear(DoraLinearLayer):
    """peft's layer with less memory: without a square matrix of the inputs' size, a product B A as large as the weight,
    or a graph of constants. By the paper's section 4.3 the norm of W + s B A is constant in backward."""

    @torch.no_grad()
    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """The norms of the rows of W + s B A, (O,)."""
        whole = torch.add(weight.T if self.fan_in_fan_out else weight, lora_weight, alpha=scaling)
        lengths: Tensor = torch.linalg.vector_norm(whole, dim=1)
        return lengths.to(weight.dtype)

    def forward(
        self, x: Tensor, *, lora_A: Any, lora_B: Any, scaling: float, base_layer: Any,
        base_result: Tensor | None = None, adapter_name: str = "default",
    ) -> Tensor:  # fmt: skip
        """The addition to the base's output W x + b: (m / |W + s B A| - 1) W x + (m / |W + s B A|) s B A x."""
        weight = dequantize_module_weight(base_layer).to(x.dtype)
        weight = weight.T if self.fan_in_fan_out else weight
        lengths = row_lengths(weight, lora_A.weight, lora_B.weight, scaling).to(weight.dtype)
        share = (self.weight / lengths).view(1, -1)
        added = lora_B(lora_A(x))
        if base_result is None:
            base_result = torch.nn.functional.linear(x, weight)
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        result: Tensor = (share - 1) * base_result + share * added * scaling
        return result
