"""Products of grouped rows, each group with a separate matrix, as in a mixture of experts.

    y_i = x_i W_g + s (x_i A_g) B_g,    g the group of row i      (Hu et al., 2021, arXiv:2106.09685, eq. 3, by expert)

The rows of a group stand together. Backward, with dy the gradient and h = x A, and sums over the rows of a group:

    dx = dy W^T + (s dy B^T) A^T    dA = x^T (s dy B^T)    dB = s h^T dy    dW = x^T dy

No W + s A B is ever formed, nor its gradient: both are as large as all experts together. Kept for backward: x, and h
(rank numbers a row).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from finetooth_kernels.autograd import apply, once_differentiable

__all__ = ["Form", "LowRankAddition", "Products", "form_of", "grouped_matmul", "torch_groups"]

LowRankAddition: TypeAlias = tuple[Tensor, Tensor, float]
"""(G, D, r), (G, r, O) and the scale of their product."""

ALIGNED = 16
"""Bytes of which every stride must be a multiple for torch's own grouped product."""
Form: TypeAlias = Literal["fused", "split"]
"""Of a product with an addition: one kernel that reads the rows once, or a product and two thin ones."""
FEW, LARGE, WIDE_RANK = 16, 2**24, 64
"""Groups, numbers of a matrix and rank that `form_of` compares with. Not timed on a device: 16 million numbers in up to
16 experts are Mixtral (8 of 59 and 117 million) and none of the mixtures of many small experts."""
RANKS = 8
"""To a multiple of this a rank is filled up with zeros where torch's own grouped product multiplies."""


class Products(NamedTuple):
    """Both kinds of products of groups.

    Attributes:
        rows: (N, D) rows, (G, D, O) matrices and `ends_g` to (N, O).
        matrices: (N, D) and (N, O) rows and `ends_g` to (G, D, O), a sum over the rows of each group.
        added: what `rows` takes, A, B and their scale to (N, O) with the addition and x A, (N, r); None: by `rows`.
    """

    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    matrices: Callable[[Tensor, Tensor, Tensor], Tensor]
    added: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] | None = None


def form_of(groups: int, depth: int, width: int, rank: int) -> Form:
    """How to multiply by matrices (depth, width) with an addition, if both forms are there.

    Few large groups are split: the large product is most of the work, and has all registers for its tiles. In many
    small ones each launch and each reading of the rows counts, so that one kernel does all, if its rank leaves room.
    """
    return "split" if rank > WIDE_RANK or (groups <= FEW and depth * width >= LARGE) else "fused"


def grouped_matmul(
    x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, addition: LowRankAddition | None = None, *,
    products: Products | None = None,
) -> Tensor:  # fmt: skip
    """Rows times the matrix of their group, with a low-rank addition of each group if there is one.

    Args:
        x_nd: (N, D), sorted by group.
        weight_gdo: (G, D, O) in the dtype of `x_nd`, in any strides.
        ends_g: (G,) int32, the row behind the last of each group, N at the end; an empty group ends where the one
            before it does.
        addition: A, B and their scale; they may be in a wider dtype.
        products: who multiplies; None: torch.

    Returns:
        (N, O) in the dtype of `x_nd`.
    """
    left, right, scale = (None, None, 0.0) if addition is None else addition
    if left is not None and right is not None and (short := -left.shape[2] % RANKS) and _takes(x_nd):
        left, right = functional.pad(left, (0, short)), functional.pad(right, (0, 0, 0, short))
    result: Tensor = apply(_Grouped, x_nd, weight_gdo, ends_g, left, right, scale, products or torch_groups)
    return result


def _one_by_one(x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor) -> Tensor:
    y_no = x_nd.new_empty((x_nd.shape[0], weight_gdo.shape[2]))
    for group, rows in _rows(ends_g):
        torch.mm(x_nd[rows], weight_gdo[group], out=y_no[rows])
    return y_no


def _sums_one_by_one(x_nd: Tensor, dy_no: Tensor, ends_g: Tensor) -> Tensor:
    sums_gdo = x_nd.new_zeros((ends_g.shape[0], x_nd.shape[1], dy_no.shape[1]))
    for group, rows in _rows(ends_g):
        torch.mm(x_nd[rows].t(), dy_no[rows], out=sums_gdo[group])
    return sums_gdo


def _rows(ends_g: Tensor) -> list[tuple[int, slice]]:
    """The groups that have rows. Reads `ends_g` on the host, which waits for a device."""
    ends = ends_g.tolist()
    starts = [0, *ends[:-1]]
    return [(g, slice(first, last)) for g, (first, last) in enumerate(zip(starts, ends, strict=True)) if last > first]


def _dense(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor of an addition, which is small, so that products read it in order."""
    made = factor.to(dtype)
    return made if 1 in made.stride()[-2:] else made.contiguous()


def _takes(*tensors: Tensor) -> bool:
    """Whether torch's own grouped product takes these: bfloat16 on a GPU from Ampere on, aligned. It waits for
    nothing."""
    first = tensors[0]
    if first.device.type != "cuda" or first.dtype != torch.bfloat16 or not hasattr(functional, "grouped_mm"):
        return False
    if torch.version.hip is None and torch.cuda.get_device_capability(first.device) < (8, 0):
        return False
    return all(map(_aligned, tensors))


def _aligned(tensor: Tensor) -> bool:
    """One of the last two axes is dense, and every other step is a multiple of `ALIGNED` bytes."""
    steps = [step * tensor.element_size() for step in tensor.stride()]
    dense = 1 in tensor.stride()[-2:]
    return dense and tensor.data_ptr() % ALIGNED == 0 and sum(step % ALIGNED != 0 for step in steps) == 1


def _by_torch(x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor) -> Tensor:
    short = -weight_gdo.shape[2] * x_nd.element_size() % ALIGNED
    if not x_nd.shape[0] or short or not _takes(x_nd, weight_gdo):
        return _one_by_one(x_nd, weight_gdo, ends_g)
    return functional.grouped_mm(x_nd, weight_gdo, offs=ends_g)


def _sums_by_torch(x_nd: Tensor, dy_no: Tensor, ends_g: Tensor) -> Tensor:
    short = -dy_no.shape[1] * x_nd.element_size() % ALIGNED
    if not x_nd.shape[0] or short or not _takes(x_nd, dy_no):
        return _sums_one_by_one(x_nd, dy_no, ends_g)
    return functional.grouped_mm(x_nd.t(), dy_no, offs=ends_g)


torch_groups = Products(_by_torch, _sums_by_torch)
"""Torch's own grouped products where it has them for a device, a dtype and sizes, else one product for each group."""


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, left_gdr: Tensor | None, right_gro: Tensor | None,
        scale: float, products: Products,
    ) -> Tensor:  # fmt: skip
        ctx.scale, ctx.products = scale, products
        kept_nd = x_nd if ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None  # only their gradients read it
        if left_gdr is None or right_gro is None:
            ctx.save_for_backward(kept_nd, weight_gdo, ends_g)
            return products.rows(x_nd, weight_gdo, ends_g)
        factors = _dense(left_gdr, x_nd.dtype), _dense(right_gro, x_nd.dtype)
        y_no, h_nr = _added(products, x_nd, weight_gdo, ends_g, *factors, scale)
        ctx.save_for_backward(kept_nd, weight_gdo, ends_g, left_gdr, right_gro, h_nr)
        return y_no

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint computes them when asked
        x_nd, weight_gdo, ends_g, *low_rank = saved
        rows, matrices, _ = ctx.products
        grad_no = grad_no.contiguous()
        needs_x, needs_weight, _, needs_left, needs_right, *_ = ctx.needs_input_grad
        d_weight = matrices(x_nd, grad_no, ends_g) if needs_weight else None
        if not low_rank:
            return rows(grad_no, weight_gdo.mT, ends_g) if needs_x else None, d_weight, *[None] * 5
        left_gdr, right_gro, h_nr = low_rank
        d_x = d_left = d_right = None
        back = _dense(right_gro, grad_no.dtype).mT
        if needs_x:  # the same product with both factors turned
            turned = back, _dense(left_gdr, grad_no.dtype).mT
            d_x, d_h = _added(ctx.products, grad_no, weight_gdo.mT, ends_g, *turned, ctx.scale)
        else:
            d_h = rows(grad_no, back, ends_g)
        if needs_right:
            d_right = matrices(h_nr, grad_no, ends_g).to(right_gro.dtype).mul_(ctx.scale)
        if needs_left:
            d_left = matrices(x_nd, d_h, ends_g).to(left_gdr.dtype).mul_(ctx.scale)
        return d_x, d_weight, None, d_left, d_right, None, None


def _added(
    products: Products, x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, left_gdr: Tensor, right_gro: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(N, O) with the addition, and the rows times `left_gdr`, (N, r)."""
    if products.added is not None:
        return products.added(x_nd, weight_gdo, ends_g, left_gdr, right_gro, scale)
    h_nr = products.rows(x_nd, left_gdr, ends_g)
    y_no = products.rows(x_nd, weight_gdo, ends_g)
    return y_no.add_(products.rows(h_nr, right_gro, ends_g), alpha=scale), h_nr
