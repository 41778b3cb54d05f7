"""Root-mean-square normalisation of rows (Zhang and Sennrich, 2019, arXiv:1910.07467), forward and backward.

    y = w * x / sqrt(mean(x^2) + eps)

The division is done in float32 and rounded before the weight multiplies, as in transformers' Llama. Kept for backward:
the input and one number a row; the normalised rows are made again from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from finetooth_kernels.contract import result_dtype

__all__ = ["rms_norm"]


def rms_norm(x_nd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """Normalise rows.

    Args:
        x_nd: (..., D) of any floating dtype.
        weight_d: (D,) in the dtype of `x_nd`.
        eps: added to the mean square.

    Returns:
        The shape and dtype of `x_nd`.
    """
    return _RmsNorm.apply(x_nd, weight_d, eps)  # type: ignore[no-any-return,no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        wide = result_dtype(x_nd.dtype)
        norm_n = torch.linalg.vector_norm(x_nd, dim=-1, keepdim=True, dtype=wide)
        inverse_n = norm_n.square_().div_(x_nd.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_nd, weight_d, inverse_n)
        normalised: Tensor = x_nd * inverse_n
        return normalised.to(x_nd.dtype).mul_(weight_d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x r, r the inverse root: dx = r (g - n mean(g n)), g = w dy; dw = sum over rows of dy n."""
        x_nd, weight_d, inverse_n = ctx.saved_tensors
        normalised = x_nd * inverse_n
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (normalised * grad_nd).reshape(-1, x_nd.shape[-1]).sum(0).to(weight_d.dtype)
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        scaled = grad_nd * weight_d.to(inverse_n.dtype)
        mean_n = torch.linalg.vecdot(scaled, normalised).div_(x_nd.shape[-1]).unsqueeze(-1)
        d_x = scaled.addcmul_(normalised, mean_n, value=-1).mul_(inverse_n)
        return d_x.to(x_nd.dtype), d_weight, None
