"""DoRA (Liu et al., 2024, arXiv:2402.09353): the lengths of the weight's rows train apart from their directions."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from torch import Tensor


class DoraLinear(DoraLinearLayer):
    """peft's, without a square of the inputs' width for each product B A, nor a graph of what takes no gradient: the
    paper's section 4.3 holds the length of W + s B A constant in backward."""

    @torch.no_grad()
    def get_lora_weight(self, lora_A: Any, lora_B: Any, adapter_name: str | None = None) -> Tensor:
        """(O, D), B A."""
        product: Tensor = lora_B.weight @ lora_A.weight
        return product

    @torch.no_grad()
    def get_weight_norm(
        self, weight: Tensor, lora_weight: Tensor, scaling: float, adapter_name: str | None = None
    ) -> Tensor:
        """(O,), the lengths of the rows of W + s B A."""
        whole = torch.add(weight.T if self.fan_in_fan_out else weight, lora_weight, alpha=scaling)
        lengths: Tensor = torch.linalg.vector_norm(whole, dim=1)
        return lengths.to(weight.dtype)
