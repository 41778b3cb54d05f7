"""Tensors as integers with a scale by Triton's kernels: what `finetooth_kernels.integers` calls on a GPU."""

from __future__ import annotations

from math import prod

import torch
from finetooth_kernels.integers import Activation, Quantized, levels
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.layers import power

__all__ = ["IntegerKernels"]

LANES = 1024
"""Numbers that a program rescales."""
WIDEST = 1 << 14
"""Numbers of a row that a program of the norm holds at once, at most."""
DEEPEST = 1 << 17
"""Products of two int8 values whose sum may not fit into int32."""


class IntegerKernels:
    """See `finetooth_kernels.integers.IntegerKernels`: each returns None for tensors that it does not read."""

    def rescaled(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int] | None = None
    ) -> Tensor | None:
        """Levels within the bounds, int8; without bounds the numbers of levels, float32."""
        inner, back = _numbers_a_scale(x, scale), bounds is None
        dtypes = (torch.int8,) if back else gpu.SUPPORTED_DTYPES
        alike = zero_point.shape == scale.shape and _of(torch.int32, zero_point)
        if inner is None or x.dtype not in dtypes or not (alike and _of(torch.float32, scale)):
            return None
        if any(of.device != x.device for of in (scale, zero_point)):
            return None
        from finetooth_triton.integer_kernels import rescaled_kernel

        x = x.contiguous()
        out = torch.empty_like(x, dtype=torch.float32 if back else torch.int8)
        with gpu.on(x.device):
            rescaled_kernel[(-(-x.numel() // LANES),)](
                x, scale.contiguous(), zero_point.contiguous(), out, x.numel(), inner, scale.numel(),
                *(bounds or (0, 0)), BACK=back, WIDE=x.numel() >= 1 << 31, COLUMNS=LANES,
                num_warps=4,
            )  # fmt: skip
        return out

    def product(
        self, a_q: Tensor, a_scale: Tensor, a_zero: Tensor | int, b_q: Tensor, b_scale: Tensor, b_zero: Tensor | int,
        bias: Tensor | None, activation: Activation | None,
    ) -> Tensor | None:  # fmt: skip
        """(M, N) float32; the arguments fit together."""
        (rows, depth), width = a_q.shape, b_q.shape[1]
        if not rows * depth * width or depth >= DEEPEST:
            return None
        shifted = any(isinstance(zero, Tensor) or zero != 0 for zero in (a_zero, b_zero))
        (a_scale, a_zero), (b_scale, b_zero) = _together(a_scale, a_zero), _together(b_scale, b_zero)
        bias_n = a_scale if bias is None else bias
        terms = a_scale, b_scale, a_zero, b_zero, bias_n
        if any(of.device != a_q.device for of in (b_q, *terms)):
            return None
        if not (_of(torch.float32, a_scale, b_scale) and _of(torch.int32, a_zero, b_zero)):
            return None
        if bias_n.dtype not in gpu.SUPPORTED_DTYPES:
            return None
        from finetooth_triton.integer_kernels import integer_product_kernel

        out = a_scale.new_empty((rows, width))
        stages = 1 if gpu.in_halves(a_q.device) else 3
        tile = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 64, "num_warps": 8, "num_stages": stages}
        strides = *a_q.stride(), *b_q.stride(), *(int(of.numel() > 1) for of in (a_scale, b_scale))
        with gpu.on(a_q.device):
            integer_product_kernel[(-(-rows // 64) * -(-width // 64),)](
                a_q, a_scale, a_zero, b_q, b_scale, b_zero, bias_n, out, rows, width, depth, *strides,
                0 if bias is None else bias.stride(0), SHIFTED=shifted, HAS_BIAS=bias is not None,
                ACTIVATION=activation or "none", **tile,
            )  # fmt: skip
        return out

    def normed(
        self, q: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None, eps: float, bits: int, symmetric: bool
    ) -> Quantized | None:
        """The layer norm of rows, quantised by tensor; the zero point makes no difference to it."""
        terms = [weight] if bias is None else [weight, bias]
        width = q.shape[-1] if q.dim() else 0
        fits = 0 < width <= WIDEST and q.numel() and scale.numel() == 1 and _of(torch.float32, scale)
        if not fits or q.dtype != torch.int8 or any(of.device != q.device for of in (scale, *terms)):
            return None
        if any(of.dtype not in gpu.SUPPORTED_DTYPES for of in terms):
            return None
        from finetooth_triton.integer_kernels import integer_norm_kernel

        q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
        rows = q.numel() // width
        bounds = scale.new_zeros((2, rows))
        given = q, scale, weight.contiguous(), (weight if bias is None else bias).contiguous(), bounds
        columns = max(16, power(width))
        tile = {"HAS_BIAS": bias is not None, "COLUMNS": columns, "num_warps": 8 if columns > 2048 else 4}
        with gpu.on(q.device):
            integer_norm_kernel[(rows,)](*given, scale, scale, out, rows, width, eps, 0, 0, WRITE=False, **tile)
            of = levels(bounds[0].amin(), bounds[1].amax(), bits, symmetric)
            integer_norm_kernel[(rows,)](
                *given, of.scale, of.zero_point, out, rows, width, eps, of.lowest, of.most, WRITE=True, **tile
            )
        return Quantized(out, of.scale, of.zero_point)


def _of(dtype: torch.dtype, *tensors: Tensor) -> bool:
    return all(of.dtype == dtype for of in tensors)


def _numbers_a_scale(x: Tensor, scale: Tensor) -> int | None:
    """How many numbers side by side share a scale; None if scales lie otherwise than by tensor or by channel."""
    if not x.numel():
        return None
    if scale.numel() == 1:
        return x.numel()
    axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if scale.dim() != x.dim() or len(axes) != 1 or scale.shape[axes[0]] != x.shape[axes[0]]:
        return None
    return prod(x.shape[axes[0] + 1 :])


def _together(scale: Tensor, zero: Tensor | int) -> tuple[Tensor, Tensor]:
    """A scale and a zero point for each other."""
    if not isinstance(zero, Tensor):
        return scale.contiguous(), torch.full_like(scale, zero, dtype=torch.int32)
    shape = max(scale.shape, zero.shape, key=lambda shape: (prod(shape), len(shape)))
    return scale.expand(shape).contiguous(), zero.expand(shape).contiguous()
