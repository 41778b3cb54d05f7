"""Products of few rows with one weight, again and again: a copy of the weight in the order in which the compiled kernel
reads it.

A number does not depend on how many rows there are: what a row gets alone it gets among others, bit for bit.
"""

from __future__ import annotations

import torch
from finetooth_kernels.mm import mm
from torch import Tensor, nn

from finetooth_native.build import COMPILED, library_for
from finetooth_native.library import Library

__all__ = ["MOST_ROWS", "FewRows"]

MOST_ROWS = 64
"""From more rows than this on the plain product is as fast."""

_UNITS = {2: torch.int16, 4: torch.int32}
"""By bytes."""


class FewRows:
    """x W^T + b with a packed copy of W; made by `pack`.

    Attributes:
        inputs, outputs: of W.
    """

    def __init__(self, library: Library, weight_od: Tensor, bias_o: Tensor | None) -> None:
        self._library, self.outputs, self.inputs = library, weight_od.shape[0], weight_od.shape[1]
        self._bias = None if bias_o is None else bias_o.detach().to(weight_od.dtype).contiguous()
        panel, together = library.few_rows_layout(weight_od.dtype)
        missing = -self.outputs % panel
        whole = nn.functional.pad(weight_od.detach(), (0, 0, 0, missing)) if missing else weight_od.detach()
        # inputs that stand together are one number: torch transposes those faster than axes of two
        whole = whole.clone() if whole.storage_offset() % together else whole
        self._unit = _UNITS[together * weight_od.element_size()]
        cut = whole.view(self._unit).view(-1, panel, self.inputs // together)
        self._packed = cut.transpose(1, 2).contiguous().view(weight_od.dtype)

    @staticmethod
    def pack(weight_od: Tensor, bias_o: Tensor | None = None) -> FewRows | None:
        """None where the compiled kernels are not there, or cannot take this weight."""
        weight_od = weight_od.detach().contiguous()
        library = library_for(weight_od)
        if library is None or not weight_od.numel() or weight_od.shape[1] % library.few_rows_layout(weight_od.dtype)[1]:
            return None
        return FewRows(library, weight_od, bias_o)

    def __call__(
        self, x_nd: Tensor, *, base_no: Tensor | None = None, more: tuple[Tensor, FewRows] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, D) to (N, O), contiguous.

        Args:
            x_nd: numbers of a row next to each other; rows may lie apart.
            base_no: likewise, of the dtype of `x_nd` or a wider one, which the result gets; added before rounding.
            more: (N, L) and another weight, (O, L), without a bias: their product is added before rounding.
            dtype: of the result, wider than that of `x_nd`; None: that of `base_no`, else of `x_nd`. Where plain
                products are rounded to the dtype of `x_nd`, so are these: logits of sampling are those of scoring.
        """
        if dtype not in (None, x_nd.dtype) and base_no is None and not self._library.multiplies_fast(x_nd.dtype):
            return self(x_nd, more=more).to(dtype)
        if x_nd.stride(-1) != 1:
            x_nd = x_nd.contiguous()
        if x_nd.shape[0] <= MOST_ROWS:
            second = None if more is None else (more[0].contiguous(), more[1]._packed)
            return self._library.few_rows(
                x_nd, self._packed, self.outputs, more=second, bias_o=self._bias, base_no=base_no, dtype=dtype
            )
        added = None if more is None else (more[0], more[1]._unpacked().t())
        out = None if dtype is None else x_nd.new_empty((x_nd.shape[0], self.outputs), dtype=dtype)
        return mm(
            x_nd, self._unpacked().t(), more=added, bias_o=self._bias, base_no=base_no, out=out, compiled=COMPILED
        )

    def _unpacked(self) -> Tensor:
        """W, made again: it is not kept twice."""
        units = self._packed.view(self._unit).transpose(1, 2).contiguous()
        return units.view(self._packed.dtype).view(-1, self.inputs)[: self.outputs]
