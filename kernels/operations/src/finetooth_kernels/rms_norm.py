"""Root-mean-square normalisation of rows (Zhang and Sennrich, 2019, arXiv:1910.07467), forward and backward.

    y = w * x / sqrt(mean(x^2) + eps)

The division is done in float32 and rounded before the weight multiplies, as in transformers' Llama. Rows may be wider
than the weight, as a residual stream in float32 is over layers in bfloat16: then nothing is rounded but the result.
Kept for backward: the input and one number a row, which can be cut from an `Arena`; the normalised rows are made again
from them. Compiled kernels and the torch operations here do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.compiled import NOTHING, Compiled, Library
from finetooth_kernels.contract import result_dtype
from finetooth_kernels.memory import Arena, cut

__all__ = ["residual_norm", "rms_norm"]


@overload
def rms_norm(
    x_nd: Tensor, weight_d: Tensor, eps: float, arena: Arena | None = None, *, residual: Literal[False] = False,
    compiled: Compiled = NOTHING,
) -> Tensor: ...  # fmt: skip
@overload
def rms_norm(
    x_nd: Tensor, weight_d: Tensor, eps: float, arena: Arena | None = None, *, residual: Literal[True],
    compiled: Compiled = NOTHING,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def rms_norm(
    x_nd: Tensor, weight_d: Tensor, eps: float, arena: Arena | None = None, *, residual: bool = False,
    compiled: Compiled = NOTHING,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Normalise rows.

    Args:
        x_nd: (..., D) of any floating dtype.
        weight_d: (D,) in that dtype or a narrower one.
        eps: added to the mean square.
        arena: for what is kept.
        residual: return the rows too; see `residual_norm`.
        compiled: kernels that take the work.

    Returns:
        The shape of `x_nd` and the dtype of `weight_d`.
    """
    if residual:
        return residual_norm(x_nd, weight_d, eps, arena, compiled=compiled)
    return apply(_RmsNorm, x_nd, weight_d, eps, arena, compiled)  # type: ignore[no-any-return]


def residual_norm(
    h_nd: Tensor, weight_d: Tensor, eps: float, arena: Arena | None = None, *, compiled: Compiled = NOTHING
) -> tuple[Tensor, Tensor]:
    """Normalise rows that are also used unnormalised, as in a residual connection: one pass serves both gradients.

    Args:
        h_nd: (..., D) of any floating dtype.
        weight_d: (D,) in that dtype or a narrower one.
        eps: added to the mean square.
        arena: for what is kept.

    Returns:
        The rows as they are, and normalised, like `rms_norm`'s.
    """
    return apply(_ResidualNorm, h_nd, weight_d, eps, arena, compiled)  # type: ignore[no-any-return]


def _kernels(
    compiled: Compiled, weight_d: Tensor, rows_nd: Sequence[Tensor], narrow_nd: Sequence[Tensor] = ()
) -> Library | None:
    """The compiled kernels, for rows of one shape that the weight fits, and others of the weight's dtype."""
    shape = rows_nd[0].shape
    if weight_d.shape != shape[-1:] or any(x.shape != shape for x in (*rows_nd, *narrow_nd)):
        return None
    if weight_d.dtype == rows_nd[0].dtype:
        library: Library | None = compiled.library_for(weight_d, *rows_nd, *narrow_nd)
        return library
    halves = (torch.bfloat16, torch.float16)
    wider = rows_nd[0].dtype == torch.float32 and weight_d.dtype in halves and compiled.readable(*rows_nd)
    return compiled.library_for(weight_d, *narrow_nd) if wider else None


def _forward(
    compiled: Compiled, x_nd: Tensor, weight_d: Tensor, eps: float, arena: Arena | None
) -> tuple[Tensor, Tensor]:
    """The normalised rows, and (..., 1), the inverse roots."""
    kernels = _kernels(compiled, weight_d, [x_nd])
    if kernels is not None:
        return kernels.rms_norm(x_nd, weight_d, eps, cut(arena, (*x_nd.shape[:-1], 1), torch.float32))
    wide = result_dtype(x_nd.dtype)
    norm_n = torch.linalg.vector_norm(x_nd, dim=-1, keepdim=True, dtype=wide)
    inverse_n = norm_n.square_().div_(x_nd.shape[-1]).add_(eps).rsqrt_()
    normalised: Tensor = x_nd * inverse_n
    return normalised.to(x_nd.dtype).mul_(weight_d).to(weight_d.dtype), inverse_n


def _backward(
    compiled: Compiled, grad_nd: Tensor, x_nd: Tensor, weight_d: Tensor, inverse_n: Tensor, beside_nd: Tensor | None
) -> Tensor:
    """With n = x r, r the inverse root: dx = r (g - n mean(g n)), g = w dy; plus `beside_nd`."""
    kernels = _kernels(compiled, weight_d, [x_nd] if beside_nd is None else [x_nd, beside_nd], [grad_nd])
    if kernels is not None:
        return kernels.rms_norm_backward(grad_nd, x_nd, weight_d, inverse_n, beside_nd)
    normalised = x_nd * inverse_n
    scaled = grad_nd * weight_d.to(inverse_n.dtype)
    mean_n = torch.linalg.vecdot(scaled, normalised).div_(x_nd.shape[-1]).unsqueeze(-1)
    d_x = scaled.addcmul_(normalised, mean_n, value=-1).mul_(inverse_n)
    return (d_x if beside_nd is None else d_x.add_(beside_nd)).to(x_nd.dtype)


def _weight_backward(compiled: Compiled, grad_nd: Tensor, x_nd: Tensor, weight_d: Tensor, inverse_n: Tensor) -> Tensor:
    """dw = sum over rows of dy n."""
    kernels = _kernels(compiled, weight_d, [x_nd], [grad_nd])
    if kernels is not None:
        return kernels.rms_norm_weight_backward(grad_nd, x_nd, inverse_n)
    return (x_nd * inverse_n * grad_nd).reshape(-1, x_nd.shape[-1]).sum(0).to(weight_d.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, weight_d: Tensor, eps: float, arena: Arena | None, compiled: Compiled
    ) -> Tensor:
        ctx.compiled = compiled
        y_nd, inverse_n = _forward(compiled, x_nd, weight_d, eps, arena)
        ctx.save_for_backward(x_nd, weight_d, inverse_n)
        return y_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        x_nd, weight_d, inverse_n = ctx.saved_tensors
        compiled = ctx.compiled
        d_x = _backward(compiled, grad_nd, x_nd, weight_d, inverse_n, None) if ctx.needs_input_grad[0] else None
        d_weight = _weight_backward(compiled, grad_nd, x_nd, weight_d, inverse_n) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, None, None, None


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_nd: Tensor, weight_d: Tensor, eps: float, arena: Arena | None, compiled: Compiled
    ) -> tuple[Tensor, Tensor]:
        ctx.compiled = compiled
        normed_nd, inverse_n = _forward(compiled, h_nd, weight_d, eps, arena)
        ctx.save_for_backward(h_nd, weight_d, inverse_n)
        return h_nd.view_as(h_nd), normed_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient through the norm plus that of the rows themselves."""
        h_nd, weight_d, inverse_n = ctx.saved_tensors
        compiled = ctx.compiled
        d_h = _backward(compiled, grad_normed, h_nd, weight_d, inverse_n, grad_h) if ctx.needs_input_grad[0] else None
        d_weight = (
            _weight_backward(compiled, grad_normed, h_nd, weight_d, inverse_n) if ctx.needs_input_grad[1] else None
        )
        return d_h, d_weight, None, None, None
