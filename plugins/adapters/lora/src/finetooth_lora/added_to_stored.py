"""peft's LoRA layer of experts, over a weight that is stored in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetooth_torchshared.stored_experts import stored_in
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor


class AddedToStored(ParamWrapper):
    """peft puts the sum in the weight's place while the layer computes; here what is stored is told what to add, and
    makes the sum when it is read, in forward and again in backward. A layer becomes one by its class, since it has all
    that peft made."""

    def get_param(self) -> Any:
        """A tensor of the weight's dtype and place without its numbers, which peft asks for both."""
        weight = stored_in(self.get_base_layer())[self.parameter_name]
        return weight.numbers_are.new_zeros(()).expand(weight.shape)

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        weight = stored_in(self.get_base_layer())[self.parameter_name]
        active = [name for name in active_adapters or () if name in self.lora_A]
        before = weight.addition
        if active:
            (name,) = active  # finetooth puts one in
            a: Tensor = self.lora_A[name].weight  # type: ignore[assignment]  # modules of torch, whose weight is one
            b: Tensor = self.lora_B[name].weight  # type: ignore[assignment]
            experts = self.num_experts
            right = a.reshape(experts, -1, a.shape[-1])
            left = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
            if not self._did_swap_in_out_features:
                left, right = right.mT, left.mT
            weight.addition = (left, right, self.scaling[name])
        try:
            yield
        finally:
            weight.addition = before
