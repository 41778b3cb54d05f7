"""peft's LoRA layer of experts, without the sum of weight and addition in memory: peft makes it for every call, as
large as all experts, and also its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from finetooth_torchshared.grouped_experts import LowRankAddition, added_to, computes_in_groups
from finetooth_torchshared.stored_experts import stored_in
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor


class ExpertAddition(ParamWrapper):
    """The experts' own products include this layer's addition. If the experts use their own code, a quantised weight
    makes the sum when it is read, in forward and again in backward; for plain numbers peft does.

    A layer gets this class by assignment, since it already has all of peft's attributes.
    """

    def get_param(self) -> Tensor:
        """The weight, or for a quantised weight a tensor of its dtype and device without its numbers, since peft only
        reads these two."""
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
        """The addition in the weight's layout: (experts, a, rank) and (experts, rank, b). finetooth uses one
        adapter."""
        own: Any = self
        a, b = own.lora_A[adapter].weight, own.lora_B[adapter].weight
        right = a.reshape(self.num_experts, -1, a.shape[-1])
        left = b.reshape(b.shape[0], -1, self.num_experts).permute(2, 0, 1)
        scale = self.scaling[adapter]
        return (left, right, scale) if self._did_swap_in_out_features else (right.mT, left.mT, scale)
