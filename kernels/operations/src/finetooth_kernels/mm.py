"""Products of matrices as layers multiply them: several terms summed in float32 and rounded once.

Rounding once matters. Added to a product that was rounded already, what is smaller than half of its last place is
always lost: in bfloat16 most of what a low-rank addition does in its first steps. Rounded with the sum it comes through
on average.

Compiled kernels do so where they are faster than torch, and torch on NVIDIA GPUs where the sum is in float32; elsewhere
torch's products round after each term.
Compiled, a row's numbers do not depend on how many rows there are, nor on the threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetooth_kernels.compiled import NOTHING, Compiled, Library

__all__ = ["mm", "sums_wide"]

Factors = tuple[Tensor, Tensor]

HALF = (torch.bfloat16, torch.float16)

ALIGNED = 8
"""Numbers in half precision of which an inner side must be a multiple for the fast products of a GPU."""


def mm(
    left_nk: Tensor,
    right_ko: Tensor,
    *,
    more: Factors | None = None,
    bias_o: Tensor | None = None,
    base_no: Tensor | None = None,
    out: Tensor | None = None,
    compiled: Compiled = NOTHING,
) -> Tensor:
    """left right, plus the other arguments; without a graph.

    Args:
        left_nk: (N, K), in any strides.
        right_ko: (K, O), likewise.
        more: (N, L) and (L, O), a second product.
        bias_o: (O,), in any strides.
        base_no: (N, O), of the dtype of the factors or a wider one.
        out: (N, O), contiguous, where to write the result: of the dtype that it would have in new memory, or a wider
            one where `sums_wide`.

    Returns:
        (N, O), in `out`, or in new memory in the dtype of `base_no`, else of the factors.
    """
    if bias_o is not None:
        bias_o = bias_o.contiguous()  # as the compiled products read it; `sums_wide` does not ask for that
    library = _library(compiled, (left_nk, right_ko), more, bias_o, base_no)
    if library is not None:
        return library.mm(left_nk, right_ko, more=more, bias_o=bias_o, base_no=base_no, out=out)
    if more is not None and _joins(left_nk, right_ko, more[0], base_no):
        left_nk, right_ko, more = torch.cat([left_nk, more[0]], 1), _stacked(right_ko, more[1]), None
    if base_no is not None and base_no.dtype == left_nk.dtype and bias_o is None:
        out_no = torch.addmm(base_no, left_nk, right_ko, out=out)
        return out_no if more is None else out_no.addmm_(*more)
    if base_no is not None and bias_o is None and _adds_wide(left_nk, base_no):
        wide = base_no.dtype
        out_no = torch.addmm(base_no, left_nk, right_ko, wide)
        return out_no if more is None else torch.addmm(out_no, more[0], more[1], wide, out=out_no)
    into = out if base_no is None else None
    factors = left_nk, right_ko
    out_no = torch.mm(*factors, out=into) if bias_o is None else torch.addmm(bias_o, *factors, out=into)
    if more is not None:
        out_no.addmm_(*more)
    return out_no if base_no is None else torch.add(base_no, out_no, out=out)


def _joins(left_nk: Tensor, right_ko: Tensor, more_nl: Tensor, base_no: Tensor | None) -> bool:
    """Whether two products are faster as one over both inner sides: on an NVIDIA GPU, where laying out the factors
    again moves fewer bytes than adding to the first product, which reads and writes all of it once more."""
    if left_nk.device.type != "cuda" or torch.version.hip is not None or left_nk.dtype not in HALF:
        return False
    (rows, inner), outputs = left_nk.shape, right_ko.shape[1]
    inner += more_nl.shape[1]
    moved = 2 * (rows + outputs) * inner * left_nk.element_size()
    added = 2 * rows * outputs * (left_nk if base_no is None else base_no).element_size()
    return inner % ALIGNED == 0 and moved < added


def _stacked(right_ko: Tensor, more_lo: Tensor) -> Tensor:
    """The right factors below each other, with numbers next to each other where they are in the first."""
    if right_ko.stride(0) == 1:
        return torch.cat([right_ko.t(), more_lo.t()], 1).t()
    return torch.cat([right_ko, more_lo])


def _adds_wide(left_nk: Tensor, base_no: Tensor) -> bool:
    """Whether torch multiplies in half precision and adds to float32 without rounding in between."""
    narrow = left_nk.dtype in HALF and base_no.dtype == torch.float32
    return narrow and left_nk.device.type == "cuda" and torch.version.hip is None


def sums_wide(*factors: Tensor, compiled: Compiled = NOTHING) -> bool:
    """Whether the compiled products take these, the left factor first: then a result in float32 costs no rounding and
    no more time."""
    library = compiled.library_for(*factors, strided=True)
    readable = all(_in_lines(factor) for factor in factors if factor.dim() == 2)
    return library is not None and readable and _is_fast(library, factors[0])


def _library(
    compiled: Compiled,
    factors: Factors,
    more: Factors | None,
    bias_o: Tensor | None,
    base_no: Tensor | None,
) -> Library | None:
    pairs = (factors,) if more is None else (factors, more)
    if not all(_fits(*pair) for pair in pairs):
        return None
    tensors = tuple(factor for pair in pairs for factor in pair)
    if bias_o is not None:
        tensors = (*tensors, bias_o)
    library: Library | None = compiled.library_for(*tensors, strided=True)
    if library is None or not all(_is_fast(library, left_nk) for left_nk, _ in pairs):
        return None
    fits = base_no is None or (compiled.readable(base_no, strided=True) and base_no.stride(1) == 1)
    return library if fits else None


def _is_fast(library: Library, left_nk: Tensor) -> bool:
    """Whether the kernel is faster than torch's, also for a left factor in columns."""
    dtype = left_nk.dtype
    return library.multiplies_fast(dtype) and (left_nk.stride(1) == 1 or library.turns(dtype))


def _fits(left_nk: Tensor, right_ko: Tensor) -> bool:
    """Whether there is something to multiply, and numbers stand next to each other where the kernel wants them to."""
    return _in_lines(left_nk) and _in_lines(right_ko) and left_nk.numel() > 0 and right_ko.numel() > 0


def _in_lines(factor: Tensor) -> bool:
    """Whether numbers stand next to each other, in rows or in columns."""
    return 1 in factor.stride()
