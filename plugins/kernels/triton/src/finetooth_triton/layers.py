"""The rows of decoder layers by Triton kernels: the part of `finetooth_kernels.compiled.Library` that GPUs have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from finetooth_kernels import dropout, gated, rms_norm, rotary
from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.compiled import Compiled
from torch import Tensor

from finetooth_triton import gpu

__all__ = ["COMPILED", "Layers"]

COLUMNS = 4096
"""Numbers of a row that a program of a norm holds at once, at most."""

ACTIVATED = 1024
"""Numbers that a program activates."""

HEADS = 16
"""Heads that a program turns."""

ROWS_A_SUM = 64
"""Rows of a partial sum of a norm's weight gradient."""


class Layers:
    """Kernels of rows. Tensors must be such as `readable` accepts, and fit together: nothing is checked."""

    def rms_norm(
        self, x_nd: Tensor, weight_d: Tensor, eps: float, inverse_n: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(..., D) normalised rows in the weight's dtype and (..., 1) float32, the inverse roots."""
        from finetooth_triton.layer_kernels import rms_norm_kernel

        y_nd = torch.empty_like(x_nd, dtype=weight_d.dtype)
        shape = (*x_nd.shape[:-1], 1)
        inverse_n = x_nd.new_empty(shape, dtype=torch.float32) if inverse_n is None else inverse_n
        rows, width = inverse_n.numel(), x_nd.shape[-1]
        with gpu.on(x_nd.device):
            rms_norm_kernel[(rows,)](
                x_nd, weight_d, y_nd, inverse_n, width, eps, SAME=x_nd.dtype == weight_d.dtype, **_of_rows(width)
            )
        return y_nd, inverse_n

    def rms_norm_backward(
        self, grad_nd: Tensor, x_nd: Tensor, weight_d: Tensor, inverse_n: Tensor, beside_nd: Tensor | None = None
    ) -> Tensor:
        """The gradient of `x_nd`, plus `beside_nd`."""
        from finetooth_triton.layer_kernels import rms_norm_backward_kernel

        d_x, width = torch.empty_like(x_nd), x_nd.shape[-1]
        with gpu.on(x_nd.device):
            rms_norm_backward_kernel[(inverse_n.numel(),)](
                grad_nd, x_nd, weight_d, inverse_n, x_nd if beside_nd is None else beside_nd, d_x, width,
                HAS_ADDED=beside_nd is not None, **_of_rows(width),
            )  # fmt: skip
        return d_x

    def rms_norm_weight_backward(self, grad_nd: Tensor, x_nd: Tensor, inverse_n: Tensor) -> Tensor:
        """The gradient of the weight, (D,)."""
        from finetooth_triton.layer_kernels import rms_norm_weight_backward_kernel

        rows, width = inverse_n.numel(), x_nd.shape[-1]
        blocks, columns = -(-rows // ROWS_A_SUM), 256
        partial_bd = x_nd.new_empty((blocks, width), dtype=torch.float32)
        with gpu.on(x_nd.device):
            rms_norm_weight_backward_kernel[(blocks, -(-width // columns))](
                grad_nd, x_nd, inverse_n, partial_bd, rows, width, ROWS=ROWS_A_SUM, COLUMNS=columns, num_warps=4
            )
        return partial_bd.sum(0).to(grad_nd.dtype)

    def gated(self, gate_up_nf: Tensor, activation: str) -> Tensor:
        """(N, 2 F) to (N, F)."""
        from finetooth_triton.layer_kernels import gated_kernel

        rows, width = gate_up_nf.shape[0], gate_up_nf.shape[1] // 2
        y_nf = gate_up_nf.new_empty((rows, width))
        with gpu.on(gate_up_nf.device):
            gated_kernel[(rows, -(-width // ACTIVATED))](gate_up_nf, y_nf, width, activation, ACTIVATED, num_warps=4)
        return y_nf

    def gated_backward(self, grad_nf: Tensor, gate_up_nf: Tensor, activation: str) -> Tensor:
        """The gradient of `gate_up_nf`."""
        from finetooth_triton.layer_kernels import gated_backward_kernel

        d_gate_up = torch.empty_like(gate_up_nf)
        rows, width = grad_nf.shape
        with gpu.on(grad_nf.device):
            gated_backward_kernel[(rows, -(-width // ACTIVATED))](
                grad_nf, gate_up_nf, d_gate_up, width, activation, ACTIVATED, num_warps=4
            )
        return d_gate_up

    def rotate(self, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, *, back: bool, out: Tensor) -> Tensor:
        """The first heads turned, the others as they are, in `out`."""
        from finetooth_triton.layer_kernels import rotate_kernel

        rows, all_heads, size = x_nhd.shape
        half = cos_nr.shape[1]
        rest = size - 2 * half
        with gpu.on(x_nhd.device):
            rotate_kernel[(rows, -(-all_heads // HEADS))](
                x_nhd, cos_nr, sin_nr, out, all_heads, size, half, heads, -1.0 if back else 1.0, HEADS=HEADS,
                HALF=_power(half), REST=_power(rest) if rest else 0, num_warps=4,
            )  # fmt: skip
        return out


def _power(size: int) -> int:
    """The power of two that holds so many."""
    return 1 << (size - 1).bit_length()


def _of_rows(width: int) -> dict[str, Any]:
    columns = min(COLUMNS, _power(width))
    return {"COLUMNS": columns, "num_warps": 8 if columns > 1024 else 4}


def runs_on(device: torch.device) -> bool:
    """Whether Triton computes there, or pretends to."""
    return device.type == "cuda" or (device.type == "cpu" and gpu.interpreted())


def readable(*tensors: Tensor, apart: bool = False) -> bool:
    """Whether the kernels can read these: where Triton runs, of one dtype that they take, not empty; and contiguous.

    Args:
        apart: numbers may also lie apart, in any strides.
    """
    dtype, device = tensors[0].dtype, tensors[0].device
    if dtype not in gpu.SUPPORTED_DTYPES or not runs_on(device):
        return False
    return all(
        x.dtype is dtype and x.device == device and x.numel() > 0 and (apart or x.is_contiguous()) for x in tensors
    )


LAYERS = Layers()


def _library_for(*tensors: Tensor, apart: bool = False) -> Any:
    return LAYERS if readable(*tensors, apart=apart) else None


COMPILED = Compiled(_library_for, readable)
"""What operations of `finetooth_kernels` find the kernels by."""

rms_norm_triton = partial(rms_norm.rms_norm, compiled=COMPILED)
rotary_triton = partial(rotary.rotate, compiled=COMPILED)
gated_mlp_triton = partial(gated.gated, compiled=COMPILED)


def keyed_dropout_triton(
    x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float
) -> Tensor:  # fmt: skip
    """See `finetooth_kernels.dropout.keyed_dropout`. Kept for backward: the words of rows and columns, nothing as large
    as x; the gradient is dropped alike."""
    if x_nd.dim() != 2 or not readable(x_nd, apart=True):
        return dropout.keyed_dropout(x_nd, rows_n, columns_d, threshold, scale)
    return apply(_Dropout, x_nd, rows_n, columns_d, threshold, scale)  # type: ignore[no-any-return]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float
    ) -> Tensor:  # fmt: skip
        ctx.rest = threshold, scale
        ctx.save_for_backward(rows_n, columns_d)
        return _dropped(x_nd, rows_n, columns_d, threshold, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        return _dropped(grad_nd, *ctx.saved_tensors, *ctx.rest), None, None, None, None


def _dropped(x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
    from finetooth_triton.layer_kernels import dropout_kernel

    x_nd = x_nd.contiguous()
    y_nd, (rows, width) = torch.empty_like(x_nd), x_nd.shape
    with gpu.on(x_nd.device):
        dropout_kernel[(rows, -(-width // ACTIVATED))](
            x_nd, rows_n, columns_d, y_nd, width, threshold, scale, ACTIVATED, num_warps=4
        )
    return y_nd
