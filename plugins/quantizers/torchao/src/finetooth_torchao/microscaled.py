"""`fp8_linear` in MXFP8: E4M3 with a power of two for every 32 numbers that are summed (OCP Microscaling Formats (MX)
Specification, version 1.0; Mishra et al., 2025, arXiv:2506.08027).

A row's outputs and the gradient of its input depend on no other row, which those of one scale for each tensor do.
torchao rounds and multiplies: on Blackwell with the tensor cores' own scales, elsewhere from the same rounded numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from finetooth_hooks import install_command
from finetooth_kernels.autograd import apply, once_differentiable
from torch import Tensor

BLOCK = 32
LEAST_CAPABILITY = (10, 0)
"""Compute capability from which NVIDIA's tensor cores take a scale for every 32 numbers (Blackwell)."""


def missing(operation: str, device: str, dtype: str) -> str:
    """Why it cannot serve there; empty if it can."""
    import importlib.util

    if not _multiplies_mxfp8(torch.device(device)):
        return (
            f"{device} cannot multiply in MXFP8, which needs compute capability 10.0 (Blackwell); leave fp8_linear out"
        )
    there = importlib.util.find_spec("torchao") is not None
    return "" if there else f"torchao is not installed; {install_command('finetooth[torchao]')}"


def mxfp8_linear(
    x_nd: Tensor, weight_od: Tensor, bias_o: Tensor | None = None, base_no: Tensor | None = None
) -> Tensor:
    """See `finetooth_kernels.fp8.fp8_linear`. All three products are in E4M3, gradients too. Bias and base are added to
    a product that was rounded already."""
    y_no: Tensor = apply(_Microscaled, x_nd, weight_od)
    for more in (bias_o, base_no):
        y_no = y_no if more is None else y_no + more
    return y_no.to(x_nd.dtype)


def _multiplies_mxfp8(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


class _Microscaled(torch.autograd.Function):
    """Every product rounds its operands along what it sums over."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_od: Tensor) -> Tensor:
        ctx.save_for_backward(x_nd if weight_od.requires_grad else None, weight_od)
        return _product(x_nd, weight_od)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_nd, weight_od = ctx.saved_tensors
        d_x = _product(grad_no, weight_od.t()).to(grad_no.dtype) if ctx.needs_input_grad[0] else None
        d_weight = _product(grad_no.t(), x_nd.t()).to(weight_od.dtype) if x_nd is not None else None
        return d_x, d_weight


def _product(left_mk: Tensor, right_nk: Tensor) -> Tensor:
    """(M, N), both operands rounded along K; zeros fill the last block."""
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    (rows, inner), columns = left_mk.shape, right_nk.shape[0]
    if not rows * inner * columns:
        return left_mk.new_zeros(rows, columns)
    native = _multiplies_mxfp8(left_mk.device)
    way = KernelPreference.AUTO if native else KernelPreference.EMULATED
    left, right = (
        MXTensor.to_mx(_filled(of), torch.float8_e4m3fn, BLOCK, ScaleCalculationMode.RCEIL, way)
        for of in (left_mk.detach(), right_nk.detach())
    )
    return torch.mm(left, right.t())[:rows, :columns].to(left_mk.dtype)


def _filled(t: Tensor) -> Tensor:
    """Row by row in memory, with zeros up to whole blocks on both sides."""
    short = -t.shape[0] % BLOCK, -t.shape[1] % BLOCK
    return torch.nn.functional.pad(t, (0, short[1], 0, short[0])).contiguous() if any(short) else t.contiguous()
