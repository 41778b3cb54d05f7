"""peft's LoRA layer of experts, where the sum of weight and addition need not be held: peft makes it for every call, as
large as all experts, and its gradient too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from finetooth_torchshared.grouped_experts import LowRankAddition, added_to, computes_in_groups
from finetooth_torchshared.stored_experts import stored_in
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor


class ExpertAddition(ParamWrapper):
    """The experts' own products add what this layer has. Where they compute in a way of their own, a weight stored in
    fewer bits makes the sum when it is read, in forward and again in backward; plain numbers are left to peft.

    A layer becomes one by its class, since it has all that peft made.
    """

    def get_param(self) -> Tensor:
        """The weight, or, where it is stored, a tensor of its dtype and place without its numbers, which peft asks for
        both."""
        weight = stored_in(self.get_base_layer()).get(self.parameter_name)
        if weight is None:
            return cast("Tensor", getattr(self.get_base_layer(), self.parameter_name))
        return weight.numbers_are.new_zeros(()).expand(weight.shape)

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        base, name = self.get_base_layer(), self.parameter_name
        active = [adapter for adapter in active_adapters or () if adapter in self.lora_A]
        stored = stored_in(base).get(name)
        if not active:
            yield
        elif computes_in_groups(base, name):
            with added_to(base, name, self._addition(*active)):
                yield
        elif stored is None:
            with super()._activate_lora(active_adapters):
                yield
        else:
            before, stored.addition = stored.addition, self._addition(*active)
            try:
                yield
            finally:
                stored.addition = before

    def _addition(self, adapter: str) -> LowRankAddition:
        """As the weight lies: (experts, a, rank) and (experts, rank, b). finetooth puts one adapter in."""
        own: Any = self
        a, b = own.lora_A[adapter].weight, own.lora_B[adapter].weight
        right = a.reshape(self.num_experts, -1, a.shape[-1])
        left = b.reshape(b.shape[0], -1, self.num_experts).permute(2, 0, 1)
        scale = self.scaling[adapter]
        return (left, right, scale) if self._did_swap_in_out_features else (right.mT, left.mT, scale)
