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

__all__ = ["COMPILED", "Layers", "power"]

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
                HALF=power(half), REST=power(rest) if rest else 0, num_warps=4,
            )  # fmt: skip
        return out

    def dropped(self, x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
        """(N, D), what the words leave, times `scale`."""
        from finetooth_triton.layer_kernels import dropout_kernel

        y_nd, (rows, width) = torch.empty_like(x_nd), x_nd.shape
        with gpu.on(x_nd.device):
            dropout_kernel[(rows, -(-width // ACTIVATED))](
                x_nd, rows_n, columns_d, y_nd, width, threshold, scale, ACTIVATED, num_warps=4
            )
        return y_nd


def power(size: int) -> int:
    """The power of two that holds so many."""
    return 1 << (size - 1).bit_length()


def _of_rows(width: int) -> dict[str, Any]:
    columns = min(COLUMNS, power(width))
    return {"COLUMNS": columns, "num_warps": 8 if columns > 1024 else 4}


def runs_on(device: torch.device) -> bool:
    """Whether Triton computes there, or pretends to."""
    return device.type == "cuda" or (device.type == "cpu" and gpu.interpreted())


def readable(*tensors: Tensor, strided: bool = False) -> bool:
    """Whether the kernels can read these: where Triton runs, of one dtype that they take, not empty; and contiguous.

    Args:
        strided: numbers may also lie apart, in any strides.
    """
    dtype, device = tensors[0].dtype, tensors[0].device
    if dtype not in gpu.SUPPORTED_DTYPES or not runs_on(device):
        return False
    return all(
        x.dtype is dtype and x.device == device and x.numel() > 0 and (strided or x.is_contiguous()) for x in tensors
    )


LAYERS = Layers()


def _library_for(*tensors: Tensor, strided: bool = False) -> Any:
    return LAYERS if readable(*tensors, strided=strided) else None


COMPILED = Compiled(_library_for, readable)
"""What operations of `finetooth_kernels` find the kernels by."""

rms_norm_triton = partial(rms_norm.rms_norm, compiled=COMPILED)
rotary_triton = partial(rotary.rotate, compiled=COMPILED)
gated_mlp_triton = partial(gated.gated, compiled=COMPILED)
keyed_dropout_triton = partial(dropout.keyed_dropout, compiled=COMPILED)


def norm_rotary_triton(
    x_nhd: Tensor, query_weight_d: Tensor, key_weight_d: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, eps: float,
    arena: Any = None,
) -> Tensor:  # fmt: skip
    """See `finetooth_kernels.rotary.norm_rotary`. Kept for backward: the rows, and one number for each head."""
    weights, angles = (query_weight_d, key_weight_d), (cos_nr, sin_nr)
    fits = 2 * cos_nr.shape[-1] <= x_nhd.shape[-1] and all(weight.shape == x_nhd.shape[-1:] for weight in weights)
    dtypes = query_weight_d.dtype in (x_nhd.dtype, torch.float32) and cos_nr.dtype == torch.float32
    if not (fits and dtypes and readable(x_nhd) and readable(*weights) and readable(*angles)):
        return rotary.norm_rotary(x_nhd, *weights, *angles, heads, eps, arena, compiled=COMPILED)
    return apply(_NormRotary, x_nhd, *weights, *angles, heads, eps)  # type: ignore[no-any-return]


class _NormRotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nhd: Tensor, query_weight_d: Tensor, key_weight_d: Tensor, cos_nr: Tensor, sin_nr: Tensor,
        heads: int, eps: float,
    ) -> Tensor:  # fmt: skip
        from finetooth_triton.layer_kernels import norm_rotary_kernel

        rows, all_heads, size = x_nhd.shape
        kv_heads = (all_heads - heads) // 2
        out, inverse = torch.empty_like(x_nhd), x_nhd.new_empty((rows, heads + kv_heads), dtype=torch.float32)
        with gpu.on(x_nhd.device):
            norm_rotary_kernel[(rows, _tiles(heads, kv_heads, kv_heads))](
                x_nhd, query_weight_d, key_weight_d, cos_nr, sin_nr, out, inverse, heads, kv_heads, size,
                cos_nr.shape[1], eps, SAME=query_weight_d.dtype == x_nhd.dtype, **_of_heads(size, cos_nr.shape[1]),
            )  # fmt: skip
        ctx.heads = heads, kv_heads
        ctx.save_for_backward(x_nhd, query_weight_d, key_weight_d, cos_nr, sin_nr, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        from finetooth_triton.layer_kernels import norm_rotary_backward_kernel

        x_nhd, query_weight_d, key_weight_d, cos_nr, sin_nr, inverse = ctx.saved_tensors
        rows, _, size = x_nhd.shape
        heads, kv_heads = ctx.heads
        queries, both, trains = _tiles(heads), _tiles(heads, kv_heads), any(ctx.needs_input_grad[1:3])
        d_x = torch.empty_like(x_nhd)
        parts = x_nhd.new_empty((rows, both, size) if trains else (1,), dtype=torch.float32)
        with gpu.on(x_nhd.device):
            norm_rotary_backward_kernel[(rows, _tiles(heads, kv_heads, kv_heads))](
                grad_nhd.contiguous(), x_nhd, query_weight_d, key_weight_d, cos_nr, sin_nr, inverse, d_x, parts,
                heads, kv_heads, size, cos_nr.shape[1], WEIGHTS=trains, **_of_heads(size, cos_nr.shape[1]),
            )  # fmt: skip
        if not trains:
            return d_x, None, None, None, None, None, None
        weights = (part.sum((0, 1)).to(query_weight_d.dtype) for part in (parts[:, :queries], parts[:, queries:]))
        return d_x, *weights, None, None, None, None


def gated_norm_triton(x_nd: Tensor, gate_nd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """See `finetooth_kernels.references.gated_norm`. Kept for backward: both inputs, and one number a row."""
    x_nd, gate_nd = x_nd.contiguous(), gate_nd.contiguous()
    fits = x_nd.dim() == 2 and x_nd.shape == gate_nd.shape and x_nd.shape[1] <= COLUMNS
    dtypes = weight_d.dtype in (x_nd.dtype, torch.float32)
    if not (fits and dtypes and readable(x_nd, gate_nd) and readable(weight_d)):
        wide = weight_d.to(torch.promote_types(weight_d.dtype, torch.float32))
        normed = rms_norm.rms_norm(x_nd.to(wide.dtype), wide, eps, compiled=COMPILED)
        return (normed * torch.nn.functional.silu(gate_nd.to(wide.dtype))).to(x_nd.dtype)
    return apply(_GatedNorm, x_nd, gate_nd, weight_d, eps)  # type: ignore[no-any-return]


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, gate_nd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        from finetooth_triton.layer_kernels import gated_norm_kernel

        rows, width = x_nd.shape
        y_nd, inverse_n = torch.empty_like(x_nd), x_nd.new_empty(rows, dtype=torch.float32)
        tile = _of_narrow_rows(width)
        with gpu.on(x_nd.device):
            gated_norm_kernel[(-(-rows // tile["ROWS"]),)](
                x_nd, gate_nd, weight_d, y_nd, inverse_n, rows, width, eps, SAME=weight_d.dtype == x_nd.dtype, **tile
            )
        ctx.save_for_backward(x_nd, gate_nd, weight_d, inverse_n)
        return y_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        from finetooth_triton.layer_kernels import gated_norm_backward_kernel

        x_nd, gate_nd, weight_d, inverse_n = ctx.saved_tensors
        rows, width = x_nd.shape
        tile = _of_narrow_rows(width)
        programs = -(-rows // tile["ROWS"])
        d_x, d_gate = torch.empty_like(x_nd), torch.empty_like(gate_nd)
        partial_bd = x_nd.new_empty((programs, width), dtype=torch.float32)
        with gpu.on(x_nd.device):
            gated_norm_backward_kernel[(programs,)](
                grad_nd.contiguous(), x_nd, gate_nd, weight_d, inverse_n, d_x, d_gate, partial_bd, rows, width, **tile
            )
        d_weight = partial_bd.sum(0).to(weight_d.dtype) if ctx.needs_input_grad[2] else None
        return d_x, d_gate, d_weight, None


def _of_narrow_rows(width: int) -> dict[str, int]:
    columns = power(width)
    return {"ROWS": max(1, 2048 // columns), "COLUMNS": columns, "num_warps": 4}


def _tiles(*heads: int) -> int:
    """Programs for heads of several kinds, none of which has two."""
    return sum(-(-of // HEADS) for of in heads)


def _of_heads(size: int, half: int) -> dict[str, int]:
    rest = size - 2 * half
    return {"HEADS": HEADS, "HALF": power(half), "REST": power(rest) if rest else 0, "num_warps": 4}
