"""Products of few rows with one weight, again and again: a copy of the weight in the order in which the compiled kernel
reads it.

A number does not depend on how many rows there are: what a row gets alone it gets among others, bit for bit. So it is
where runs of rows have second products of their own (see `finetooth_kernels.runs`). A library's products have no part
in it: how they sum depends on the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from finetooth_kernels.mm import mm
from finetooth_kernels.runs import Run, pieces
from torch import Tensor

from finetooth_native.build import COMPILED, library_for
from finetooth_native.library import Library
from finetooth_native.packed_weight import PackedWeight, pack_weight

__all__ = ["MOST_ROWS", "FewRows"]

MOST_ROWS = 1024
"""From more rows than this on `mm` is as fast, though the weight has to be made again for it. Where `mm` is torch's
product, this kernel is as fast for any number of rows, and takes so many at a time: they stay in a cache."""


class FewRows:
    """x W^T + b with a packed copy of W; made by `pack`.

    Attributes:
        inputs, outputs: of W.
    """

    def __init__(self, library: Library, weight_od: Tensor, bias_o: Tensor | None) -> None:
        self._library, self.outputs, self.inputs = library, weight_od.shape[0], weight_od.shape[1]
        self._bias = None if bias_o is None else bias_o.detach().to(weight_od.dtype).contiguous()
        self._packed = pack_weight(weight_od, *library.few_rows_layout(weight_od.dtype)) if self.outputs else None

    @staticmethod
    def pack(weight_od: Tensor, bias_o: Tensor | None = None) -> FewRows | None:
        """None where the compiled kernels are not there, or cannot take this weight. One without outputs has no product
        but those of runs."""
        weight_od = weight_od.detach().contiguous()
        library = library_for(weight_od)
        if library is None or not weight_od.shape[1]:
            return None
        if weight_od.shape[1] % library.few_rows_layout(weight_od.dtype)[2]:
            return None
        return FewRows(library, weight_od, bias_o)

    def __call__(
        self, x_nd: Tensor, *, base_no: Tensor | None = None, more: tuple[Tensor, FewRows] | None = None,
        own: tuple[Tensor, Sequence[Run]] | None = None, dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, D) to (N, O), contiguous.

        Args:
            x_nd: rows may lie apart.
            base_no: of the dtype of `x_nd` or a wider one, which the result gets; added before rounding.
            more: (N, L) and another weight, (O, L), without a bias: their product is added before rounding.
            own: (N, M), and runs of rows whose weights, (up to O, up to M), multiply with theirs: likewise, instead of
                `more`. Where this weight has no outputs, the result has those of the runs' widest, 0 where nothing is.
            dtype: of the result, wider than that of `x_nd`; None: that of `base_no`, else of `x_nd`. Where plain
                products are rounded to the dtype of `x_nd`, so are these: logits of sampling are those of scoring.
        """
        if dtype not in (None, x_nd.dtype) and base_no is None and not self._library.multiplies_fast(x_nd.dtype):
            return self(x_nd, more=more, own=own).to(dtype)
        if x_nd.stride(-1) != 1:
            x_nd = x_nd.contiguous()
        if base_no is not None and base_no.stride(-1) != 1:
            base_no = base_no.contiguous()
        if own is not None:
            return self._by_run(x_nd, base_no, own[0].contiguous(), own[1], dtype)
        if x_nd.shape[0] <= MOST_ROWS:
            return self._few(x_nd, base_no, () if more is None else _every_row(more[0].contiguous(), more[1]), dtype)
        if not self._library.multiplies_fast(x_nd.dtype):
            return self._in_parts(x_nd, base_no, more)
        added = None if more is None else (more[0], more[1]._unpacked().t())
        out = None if dtype is None else x_nd.new_empty((x_nd.shape[0], self.outputs), dtype=dtype)
        return mm(
            x_nd, self._unpacked().t(), more=added, bias_o=self._bias, base_no=base_no, out=out, compiled=COMPILED
        )

    def _in_parts(self, x_nd: Tensor, base_no: Tensor | None, more: tuple[Tensor, FewRows] | None) -> Tensor:
        bounds = [slice(start, start + MOST_ROWS) for start in range(0, x_nd.shape[0], MOST_ROWS)]
        return torch.cat(
            [
                self(
                    x_nd[rows],
                    base_no=None if base_no is None else base_no[rows],
                    more=None if more is None else (more[0][rows], more[1]),
                )
                for rows in bounds
            ]
        )

    def _few(
        self, x_nd: Tensor, base_no: Tensor | None,
        own: Sequence[tuple[int, int, Tensor, PackedWeight]], dtype: torch.dtype | None,
    ) -> Tensor:  # fmt: skip
        if self._packed is None:
            widest = max((part[3].outputs for part in own), default=0)
            return self._library.few_rows(x_nd, None, widest, own=own, dtype=dtype)
        return self._library.few_rows(
            x_nd, self._packed, self.outputs, own=own, bias_o=self._bias, base_no=base_no, dtype=dtype
        )

    def _by_run(
        self, x_nd: Tensor, base_no: Tensor | None, of_nm: Tensor, runs: Sequence[Run], dtype: torch.dtype | None
    ) -> Tensor:
        """Rows that fit together in one pass over the weight; those of a long run in a product of their own."""
        if x_nd.shape[0] <= MOST_ROWS:
            own = [(run.start, run.stop, of_nm, run.weight._packed) for run in runs if run.weight.outputs]
            return self._few(x_nd, base_no, own, dtype)
        width = self.outputs or max((run.weight.outputs for run in runs), default=0)
        dtype = dtype or (x_nd.dtype if base_no is None else base_no.dtype)
        y_no = x_nd.new_empty((x_nd.shape[0], width), dtype=dtype)
        for start, stop, within in pieces(runs, x_nd.shape[0], MOST_ROWS):
            rows, base = slice(start, stop), None if base_no is None else base_no[start:stop]
            wide = None if base is not None or dtype == x_nd.dtype else dtype
            if stop - start <= MOST_ROWS:
                part = self._by_run(x_nd[rows], base, of_nm[rows], within, wide)
            elif not within:
                part = self(x_nd[rows], base_no=base, dtype=wide) if self.outputs else x_nd.new_empty((stop - start, 0))
            else:
                weight = within[0].weight
                of = of_nm[rows, : weight.inputs]
                part = self(x_nd[rows], base_no=base, more=(of, weight), dtype=wide) if self.outputs else weight(of)
            y_no[rows, : part.shape[1]] = part
            y_no[rows, part.shape[1] :] = 0
        return y_no

    def _unpacked(self) -> Tensor:
        """W, made again: it is not kept twice."""
        assert self._packed is not None
        return self._packed.unpacked()


def _every_row(of_nl: Tensor, weight: FewRows) -> tuple[tuple[int, int, Tensor, PackedWeight], ...]:
    return () if weight._packed is None else ((0, of_nl.shape[0], of_nl, weight._packed),)
