"""peft's layer of BOFT, with a rotation of its inputs block by block.

Without a CUDA compiler peft puts the blocks into one matrix, as wide as the inputs and mostly zero, and multiplies it
three times by others of this size before the rotation: inputs cubed for a forward pass of any length, and an identity
permutation in memory at every module (1,536 inputs: 22 GFLOP and 9 MiB). With one factor, each block rotates its own
consecutive inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.boft.layer import Linear
from torch import Tensor

PERMUTATION = "boft_P"
"""peft's buffer."""


class BlockwiseLinear(Linear):
    """y = s * W R x as in `peft.tuners.boft.layer.Linear`, with one butterfly factor."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., inputs) to (..., outputs); the blocks are made in fp32 and rounded to the inputs' precision."""
        base: Any = self.base_layer
        if self.disable_adapters or self.merged:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        (name,) = (name for name in self.active_adapters if name in self.boft_R)
        dropout: Any = self.boft_dropout[name]
        blocks_dhh = dropout(self._turning(name).unsqueeze(0)).squeeze(0).to(x.dtype)
        rows = x.reshape(-1, blocks_dhh.shape[0], blocks_dhh.shape[1]).transpose(0, 1)
        turned = torch.bmm(rows, blocks_dhh).transpose(0, 1).reshape(x.shape)
        out: Tensor = base(turned, *args, **kwargs)
        scale, bias = self.boft_s[name].squeeze(-1), base.bias
        out = out * scale if bias is None else (out - bias) * scale + bias
        return out.to(x.dtype)

    def get_delta_weight(self, adapter: str) -> tuple[Tensor, Tensor]:
        """The rotation as one matrix, (inputs, inputs), and the factors."""
        whole: Tensor = torch.block_diag(*self._turning(adapter))  # type: ignore[no-untyped-call]
        return whole, self.boft_s[adapter]

    def _turning(self, name: str) -> Tensor:
        """(blocks, size, size), each orthogonal."""
        turning: Tensor = self.cayley_batch(self.boft_R[name][0])  # type: ignore[no-untyped-call]
        return turning


def turn_by_blocks(model: Any) -> None:
    """Give this class to BOFT layers of linear modules with one factor."""
    for module in model.modules():
        if type(module) is Linear and all(matrix.shape[0] == 1 for matrix in module.boft_R.values()):
            module.__class__ = BlockwiseLinear
            del module._buffers[PERMUTATION]


__all__ = ["BlockwiseLinear", "turn_by_blocks"]
