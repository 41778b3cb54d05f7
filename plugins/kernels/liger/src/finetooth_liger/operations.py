"""Operations of `finetooth_kernels` by Liger's kernels; tensors that those do not take are computed torch's way.

Liger's own autograd functions are not used: some of them write the gradient over what was kept for backward, so that
going back twice through a kept graph gives wrong numbers without a word. Of its two activations only SiLU is taken for
that reason, since the gradient of the other has no form that leaves its inputs alone.
"""

from __future__ import annotations

from typing import Any

import torch
from finetooth_kernels import gated, triton_devices
from finetooth_kernels import rms_norm as norms
from finetooth_kernels import rotary as rotations
from finetooth_kernels.autograd import apply, once_differentiable
from torch import Tensor

__all__ = ["gated_mlp", "rms_norm", "rotary"]

WIDEST = 1 << 16
"""Numbers of a row that Liger's kernels hold at once."""


def rms_norm(x_nd: Tensor, weight_d: Tensor, eps: float, arena: Any = None, *, residual: bool = False) -> Any:
    """See `finetooth_kernels.rms_norm.rms_norm`; rows and weight of one dtype are Liger's."""
    if not _taken(x_nd) or weight_d.dtype != x_nd.dtype or weight_d.shape != x_nd.shape[-1:]:
        return norms.rms_norm(x_nd, weight_d, eps, arena, residual=residual)  # type: ignore[call-overload]
    y = apply(_RmsNorm, x_nd, weight_d, eps)
    return (x_nd, y) if residual else y


def rotary(x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, arena: Any = None) -> Tensor:
    """See `finetooth_kernels.rotary.rotate`; Liger turns queries and keys at once, so it takes two heads and more."""
    fits = x_nhd.dim() == 3 and cos_nr.dim() == 2 and cos_nr.shape == sin_nr.shape
    if not fits or not _taken(x_nhd) or not 2 <= heads <= x_nhd.shape[1] or cos_nr.dtype != torch.float32:
        return rotations.rotate(x_nhd, cos_nr, sin_nr, heads, arena)
    result: Tensor = apply(_Rotate, x_nhd, cos_nr, sin_nr, heads)
    return result


def gated_mlp(gate_up_nf: Tensor, activation: str = "silu") -> Tensor:
    """See `finetooth_kernels.gated.gated`; SiLU is Liger's."""
    if activation != "silu" or gate_up_nf.dim() != 2 or gate_up_nf.shape[1] % 2 or not _taken(gate_up_nf):
        return gated.gated(gate_up_nf, activation)
    result: Tensor = apply(_Gated, gate_up_nf)
    return result


def _taken(x: Tensor) -> bool:
    """Whether Liger's kernels take rows like these."""
    here = x.device.type == "cuda" or (triton_devices.interpreted() and x.dtype != torch.bfloat16)
    return here and x.dtype in triton_devices.SUPPORTED_DTYPES and x.numel() > 0 and x.shape[-1] <= WIDEST


class _RmsNorm(torch.autograd.Function):
    """As in transformers' Llama: the division in float32, rounded before the weight multiplies."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        from liger_kernel.ops.rms_norm import rms_norm_forward

        x_nd, weight_d = x_nd.contiguous(), weight_d.contiguous()
        with triton_devices.on(x_nd.device):
            y, rows, inverse, *how = rms_norm_forward(x_nd, weight_d, eps, 0.0, "llama", None)
        ctx.block, ctx.warps, ctx.mode = how
        ctx.save_for_backward(rows, weight_d, inverse)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        from liger_kernel.ops.rms_norm import rms_norm_backward

        rows, weight_d, inverse = ctx.saved_tensors
        with triton_devices.on(rows.device):
            d_x, d_weight = rms_norm_backward(
                grad_nd.contiguous(), rows, weight_d, inverse, 0.0, ctx.mode, ctx.block, ctx.warps, False, None,
                needs_dw=ctx.needs_input_grad[1],
            )  # fmt: skip
        return d_x, d_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int) -> Tensor:
        ctx.heads = heads
        ctx.save_for_backward(cos_nr, sin_nr)
        return _turned(x_nhd, cos_nr, sin_nr, heads, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        cos_nr, sin_nr = ctx.saved_tensors
        return _turned(grad_nhd, cos_nr, sin_nr, ctx.heads, back=True), None, None, None


def _turned(x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, *, back: bool) -> Tensor:
    """Turn copies of the heads, which is what Liger's kernel does in place, and put the others behind them."""
    from liger_kernel.ops.rope import rope_backward, rope_forward

    half = heads // 2
    parts = [part.clone(memory_format=torch.contiguous_format) for part in (x_nhd[:, :half], x_nhd[:, half:heads])]
    first, second = (part.unsqueeze(0).transpose(1, 2) for part in parts)  # (1, heads, N, D)
    turn = rope_backward if back else rope_forward
    with triton_devices.on(x_nhd.device):
        first, second, *_ = turn(first, second, cos_nr, sin_nr, rotary_dim=2 * cos_nr.shape[1])
    both = [part.transpose(1, 2).squeeze(0) for part in (first, second)]
    return torch.cat([*both, x_nhd[:, heads:]], 1)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_nf: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import swiglu_fused_gate_up_forward

        with triton_devices.on(gate_up_nf.device):
            saved, y = swiglu_fused_gate_up_forward(gate_up_nf.contiguous())
        ctx.save_for_backward(saved)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nf: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import swiglu_fused_gate_up_backward

        (saved,) = ctx.saved_tensors
        with triton_devices.on(saved.device):
            d_gate_up: Tensor = swiglu_fused_gate_up_backward(saved, grad_nf.contiguous())
        return d_gate_up
