"""peft's layer over a linear module, with a single rounding of product and addition in half precision.

B starts at zero, so in the first steps the addition is smaller than half a unit in the last place of nearly every
number. If the product is already rounded, the addition is lost every time: the adapter learns, but the model does not
change. Therefore the product is accumulated onto the addition in float32, and only the sum is rounded; on average it
then includes the addition."""

from __future__ import annotations

from typing import Any

import torch
from finetooth_torchshared.float8 import Float8Linear
from finetooth_torchshared.plain_modules import is_plain
from finetooth_torchshared.quantised import DequantisingLinear
from peft.tuners.lora import Linear
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


class RoundedOnce(Linear):
    """The layer. In fp32 and fp64, with DoRA, and over modules of libraries it computes like peft's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """base(x) + s (x A^T) B^T."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        base: Any = self.base_layer
        summing = isinstance(base, (DequantisingLinear, Float8Linear))
        known = summing or is_plain(base)
        ordinary = not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
        if not (names and known and ordinary and x.dtype in HALF):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        additions = []
        for name in names:
            a: Any = self.lora_A[name]
            b: Any = self.lora_B[name]
            low = b(a(self.lora_dropout[name](x.to(a.weight.dtype))))
            additions.append(low * self.scaling[name])
        added = torch.stack(additions).sum(0) if len(additions) > 1 else additions[0]
        if summing:
            return base.plus(x, added)  # type: ignore[no-any-return]
        weight, bias = base.weight, base.bias
        flat = torch.addmm(added.to(x.dtype).flatten(0, -2), x.flatten(0, -2), weight.t())
        summed: Tensor = flat.view(*x.shape[:-1], -1)
        # the bias last: at worst its own rounding is coarser, never that of the product
        return summed if bias is None else summed + bias
