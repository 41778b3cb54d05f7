"""Linear layers packed for many products with few rows, which dominate sampling.

A plain matrix product reorders the weight for its kernel at every call. With a few dozen rows that costs half as much
as the product itself, so sampling keeps each weight in the order of the kernel that the plan picked (`packed_linear`),
or in oneDNN's. A packed weight is a copy of the current weight, and is dropped when sampling ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from finetooth_kernels.decoder import Group, PlainGroup
from finetooth_kernels.low_rank_linear import Again, torch_directions
from finetooth_kernels.memory import Arena
from finetooth_kernels.runs import Run
from torch import Tensor, nn

ALLOWED = {4: 1e-5, 2: 2e-2}
"""Largest difference from a plain product, as a share of its largest number, by bytes per number."""


Pack = Callable[..., Any]
"""From a weight and its bias to a function that multiplies with them, or None."""


@cache
def can_pack(dtype: torch.dtype, device: str) -> bool:
    """Whether this torch has oneDNN's packed products for `dtype`, equal to plain ones."""
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    x = torch.arange(7 * 40).remainder(11).sub(5).view(7, 40).to(dtype)
    weight = torch.arange(48 * 40).remainder(13).sub(6).view(48, 40).to(dtype)
    bias = torch.arange(48).to(dtype)
    expected = nn.functional.linear(x, weight, bias)
    try:
        product = _product(x, _reorder(weight), bias)
    except RuntimeError:
        return False
    return bool((product - expected).abs().max() <= ALLOWED[dtype.itemsize] * expected.abs().max())


def _reorder(weight_od: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_od.contiguous())
    return packed


def _product(x_nd: Tensor, packed_od: Tensor, bias_o: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_nd, packed_od, bias_o, "none", [], "")
    return product


class PackedLinear:
    """x W^T + b with a packed copy of W, in the order of a kernel, or in oneDNN's without one.

    Args:
        weight_od: (O, D); used unpacked if `can_pack` is false.
        dtype: of results, except in oneDNN's order. None: the weight's.
        pack: see `Compute.packed_linear`.

    Attributes:
        size: bytes per number.
    """

    def __init__(
        self,
        weight_od: Tensor,
        bias_o: Tensor | None = None,
        dtype: torch.dtype | None = None,
        pack: Pack | None = None,
    ) -> None:
        self._dtype = dtype
        self._own: Any = None if pack is None else pack(weight_od, bias_o)
        weight = weight_od.detach()
        reorders = self._own is None and weight.numel() and can_pack(weight.dtype, weight.device.type)
        self._packed = _reorder(weight) if reorders else None
        self._plain = weight if self._own is None and self._packed is None else None
        self._bias = None if bias_o is None else bias_o.detach()
        self.size: int = weight.nbytes

    def __call__(
        self, x_nd: Tensor, *, base_no: Tensor | None = None, more: tuple[Tensor, PackedLinear] | None = None
    ) -> Tensor:
        """(N, D) to (N, O).

        Args:
            base_no: (N, O), of the dtype of `x_nd` or a wider one, which the result has.
            more: (N, L) and (O, L), whose product is added; packed alike.
        """
        if self._own is not None and (more is None or more[1]._own is not None):
            second = None if more is None else (more[0], more[1]._own)
            own: Tensor = self._own(x_nd, base_no=base_no, more=second, dtype=self._dtype)
            return own
        y_no = self._product(x_nd)
        if more is not None:
            y_no = y_no.add_(more[1](more[0]))
        return y_no if base_no is None else base_no + y_no

    def by_run(self, x_nd: Tensor, nothing: PackedLinear | None, pairs: Pairs, base_no: Tensor | None) -> Tensor:
        """(N, D) to (N, O), where runs of rows have different adapters.

        Args:
            nothing: a packed weight without outputs, if the kernel takes runs; then a row gets the same numbers as with
                its adapter as `more`.
            pairs: first row, end row, and the adapter's matrices.
        """
        kernels = [(start, stop, a._own, b._own) for start, stop, (a, b) in pairs]
        shrink = None if nothing is None or self._own is None else nothing._own
        if shrink is not None and not any(a is None or b is None for _, _, a, b in kernels):
            h_nr = shrink(x_nd, own=(x_nd, [Run(start, stop, a) for start, stop, a, _ in kernels]))
            added = h_nr, [Run(start, stop, b) for start, stop, _, b in kernels]
            own: Tensor = self._own(x_nd, base_no=base_no, own=added, dtype=self._dtype)
            return own
        y_no = self._product(x_nd)
        for start, stop, (a, b) in pairs:
            y_no[start:stop] += b(a(x_nd[start:stop]))
        return y_no if base_no is None else base_no + y_no

    def _product(self, x_nd: Tensor) -> Tensor:
        if self._plain is not None:
            return nn.functional.linear(x_nd, self._plain, self._bias)
        own: Tensor = _product(x_nd, self._packed, self._bias) if self._packed is not None else self._own(x_nd)
        return own


Pair = tuple[PackedLinear, PackedLinear]
"""The A and B of an adapter, with its scale in B."""

Pairs = Sequence[tuple[int, int, Pair]]


def packed_pair(a_rd: Tensor, b_or: Tensor, pack: Pack | None = None) -> Pair:
    """An odd rank gets a row and a column of zeros, so that kernels that multiply pairs can take it."""
    odd = a_rd.shape[0] % 2
    if odd:
        a_rd, b_or = nn.functional.pad(a_rd, (0, 0, 0, 1)), nn.functional.pad(b_or, (0, 1))
    return PackedLinear(a_rd, pack=pack), PackedLinear(b_or, pack=pack)


class Rows(Protocol):
    """See `finetooth_torch.generation.row_adapters.RowAdapters`."""

    @property
    def runs(self) -> tuple[tuple[int, int, Any], ...] | None: ...


class PackedGroup:
    """A packed copy of a `Group`: its weights as one matrix, and the A and B of its adapters as two more.

    Results equal `finetooth_kernels.low_rank_linear`: W and s B A are not merged, since bfloat16 would round a small
    change away.

    Args:
        number: of the group in the decoder.
        rows: which adapter each row has.
        runs: `pack` takes runs of rows.
        gains_o: with DoRA what its additions have, measured once; see `GroupParts`. Such a group has no other rows'
            adapters.
    """

    def __init__(
        self, weight_od: Tensor, bias_o: Tensor | None, a_rd: Tensor | None, b_or: Tensor | None,
        pack: Pack | None = None, *, number: int = 0, rows: Rows | None = None, runs: bool = False,
        gains_o: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._gains, self._bias = gains_o, bias_o
        self._linear = PackedLinear(weight_od, bias_o if gains_o is None else None, pack=pack)
        self._added = None if a_rd is None or b_or is None else packed_pair(a_rd, b_or, pack)
        self._number, self._rows = number, rows
        self._nothing = PackedLinear(weight_od[:0], pack=pack) if runs else None

    def __call__(
        self, x_nd: Tensor, again: Again | None = None, base_no: Tensor | None = None, arena: Arena | None = None,
        *, passing: bool = False,
    ) -> Tensor:  # fmt: skip
        """(N, D) to (N, O), added to `base_no`; the other arguments are those of `Group` and unused."""
        del again, arena, passing
        runs = None if self._rows is None else self._rows.runs
        if runs is not None and len(runs) > 1:
            of_runs = [(start, stop, self._of(adapter)) for start, stop, adapter in runs]
            pairs = [(start, stop, pair) for start, stop, pair in of_runs if pair is not None]
            return self._linear.by_run(x_nd, self._nothing, pairs, base_no)
        added = self._added if runs is None else self._of(runs[0][2])
        if added is None:
            return self._linear(x_nd, base_no=base_no)
        a, b = added
        if self._gains is None:
            return self._linear(x_nd, base_no=base_no, more=(a(x_nd), b))
        zeros_no = x_nd.new_zeros((x_nd.shape[0], len(self._gains)), dtype=self._gains.dtype)
        wide_no = self._linear(x_nd, base_no=zeros_no, more=(a(x_nd), b))
        return torch_directions.scaled(wide_no, self._gains, self._bias, base_no, x_nd.dtype)[0]

    def _of(self, adapter: Any) -> Pair | None:
        """An adapter's matrices for this group; None is the engine's own."""
        if adapter is None:
            return self._added
        pair: Pair | None = adapter.pairs[self._number]
        return pair


def packed(group: PlainGroup, pack: Pack | None = None, *, always: bool = False, **named: Any) -> Group:
    """The group with packed weights, or unchanged if they cannot be packed.

    Args:
        always: use weights unpacked if they cannot be packed, or if DoRA changes them: its lengths are then not
            measured for each token.
        named: for `PackedGroup`.
    """
    parts = group.parts()
    if parts is None:
        return group
    if not (always or parts.gains is not None or can_pack(parts.weight.dtype, parts.weight.device.type)):
        return group
    return PackedGroup(parts.weight, parts.bias, parts.a, parts.b, pack, gains_o=parts.gains, **named)
