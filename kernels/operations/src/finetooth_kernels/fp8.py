"""Linear layers that multiply in 8-bit floating point, forward and backward (Micikevicius et al., 2022,
arXiv:2209.05433).

    y = s_x s_W (x8 W8^T) + b + base,    t8 = round(t / s_t),    s_t = max|t| / greatest

Inputs and weights are rounded to E4M3 (greatest 448), incoming gradients to E5M2 (57,344), each tensor with one scale.
Sums are in float32, and the result is rounded once. A tensor of zeros has the scale 1.

Since a scale is that of all rows that are multiplied together, a row's result depends on the other rows, by as much as
rounding to 8 bits does. Devices without such products compute them from the same rounded numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.counted_rows import without_autocast

__all__ = [
    "E4M3", "E5M2", "Rounded", "Rounding", "fp8_linear", "fp8_product", "multiplies_fp8", "rounded", "rounding_once",
]  # fmt: skip

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TILE = 16
"""Numbers of which every side of a product on a device must be a multiple."""
LEAST_CAPABILITY = (8, 9)
"""Compute capability from which NVIDIA's tensor cores multiply in 8 bits (Ada, Hopper)."""
ARCHITECTURES = ("gfx95", "gfx12")
"""Beginnings of AMD's architectures whose matrix instructions take OCP's 8-bit floats (CDNA 4, RDNA 4). Those of MI300
(gfx942) have another exponent, with which the products here do not multiply."""


class Rounded(NamedTuple):
    """A tensor in 8 bits.

    Attributes:
        values: (rows, columns), `E4M3` or `E5M2`.
        scale: () float32, by which they are multiplied.
    """

    values: Tensor
    scale: Tensor


class Rounding(Protocol):
    """The type of `rounded`."""

    def __call__(
        self, t: Tensor, dtype: torch.dtype, /, *, by_columns: bool = False, scale: Tensor | None = None
    ) -> Rounded: ...


class _OfThread(threading.local):
    """Rounded inputs within `rounding_once`, by identity, with their rounding function."""

    inputs: dict[tuple[int, int], tuple[Tensor, Rounded]] | None = None


_OF_THREAD = _OfThread()


@contextmanager
def rounding_once() -> Iterator[None]:
    """Within it, layers of this thread that read the same tensor round it once, and keep one copy of it for backward.
    Nobody writes to such a tensor meanwhile."""
    before, _OF_THREAD.inputs = _OF_THREAD.inputs, {}
    try:
        yield
    finally:
        _OF_THREAD.inputs = before


def _rounded_input(x_nd: Tensor, rounding: Rounding) -> Rounded:
    inputs = _OF_THREAD.inputs
    if inputs is None:
        return rounding(x_nd, E4M3)
    key = id(x_nd), id(rounding)
    if key not in inputs:
        inputs[key] = x_nd, rounding(x_nd, E4M3)  # the tensor too: another could get its identity
    return inputs[key][1]


def fp8_linear(
    x_nd: Tensor, weight_od: Tensor, bias_o: Tensor | None = None, base_no: Tensor | None = None, *,
    rounding: Rounding | None = None,
) -> Tensor:  # fmt: skip
    """A linear layer whose three products (forward, gradient of the input, gradient of the weight) are in 8 bits.

    Args:
        x_nd: (N, D).
        weight_od: (O, D).
        bias_o: (O,), or None.
        base_no: (N, O), is added before the result is rounded; None: nothing.
        rounding: rounds the operands; None: `rounded` does.

    Returns:
        (N, O) in the dtype of `x_nd`.
    """
    result: Tensor = apply(_Fp8Linear, x_nd, weight_od, bias_o, base_no, rounding or rounded)
    return result


def rounded(t: Tensor, dtype: torch.dtype, *, by_columns: bool = False, scale: Tensor | None = None) -> Rounded:
    """A tensor in 8 bits, with the scale that takes its greatest number to the greatest that there is.

    Args:
        by_columns: the product will read it column by column; a hint, by which others lay it out.
        scale: of the same tensor, where it is known.
    """
    del by_columns
    t, greatest = t.detach(), torch.finfo(dtype).max
    if scale is None:
        largest = t.abs().amax().float() if t.numel() else torch.zeros((), device=t.device)
        scale = torch.where(largest == 0, torch.ones_like(largest), largest / greatest)
    return Rounded(t.to(torch.float32, copy=True).div_(scale).clamp_(-greatest, greatest).to(dtype), scale)


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device has products in the types of this module."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    if torch.version.hip is not None:
        architecture = str(torch.cuda.get_device_properties(device).gcnArchName)
        return architecture.startswith(ARCHITECTURES)
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def fp8_product(left_mk: Rounded, right_kn: Rounded) -> Tensor:
    """(M, N) float32, the product of two matrices in 8 bits with their scales."""
    if multiplies_fp8(left_mk.values.device):
        return scaled_product(left_mk, right_kn)
    with without_autocast(left_mk.values.device):
        return torch.mm(left_mk.values.float(), right_kn.values.float()).mul_(left_mk.scale * right_kn.scale)


def scaled_product(left_mk: Rounded, right_kn: Rounded) -> Tensor:
    """The same by torch's product in 8 bits, which takes rows of the left and columns of the right as they lie."""
    left, right = _padded(left_mk.values), _padded(right_kn.values.t())
    product = torch._scaled_mm(left, right.t(), scale_a=left_mk.scale, scale_b=right_kn.scale, out_dtype=torch.float32)
    return product[: left_mk.values.shape[0], : right_kn.values.shape[1]]


def _padded(values: Tensor) -> Tensor:
    """The values row by row, with zeros up to a multiple of `TILE` on both sides."""
    rows, columns = values.shape
    short = -rows % TILE, -columns % TILE
    if not any(short):
        return values.contiguous()
    wide = torch.zeros(rows + short[0], columns + short[1], dtype=torch.uint8, device=values.device)
    wide[:rows, :columns] = values.view(torch.uint8)
    return wide.view(values.dtype)


class _Fp8Linear(torch.autograd.Function):
    """Kept for backward: the weight, and the input in 8 bits where the weight trains."""

    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, weight_od: Tensor, bias_o: Tensor | None, base_no: Tensor | None, rounding: Rounding
    ) -> Tensor:
        x, weight = _rounded_input(x_nd, rounding), rounding(weight_od, E4M3)
        y_no = fp8_product(x, Rounded(weight.values.t(), weight.scale))
        for more in (bias_o, base_no):
            y_no = y_no if more is None else y_no.add_(more)
        ctx.dtypes = x_nd.dtype, *(None if of is None else of.dtype for of in (bias_o, base_no))
        ctx.rounding = rounding
        ctx.save_for_backward(weight_od, weight.scale, *(x if weight_od.requires_grad else ()))
        return y_no.to(x_nd.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor | None, ...]:
        weight_od, weight_scale, *x_parts = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_base, _ = ctx.needs_input_grad
        d_x = d_weight = grad = None
        if needs_x:
            grad = ctx.rounding(grad_no, E5M2)
            weight = ctx.rounding(weight_od, E4M3, by_columns=True, scale=weight_scale)
            d_x = fp8_product(grad, weight).to(ctx.dtypes[0])
        if needs_weight:
            if grad is not None and ctx.rounding is rounded:
                turned = grad  # which lays nothing out by columns
            else:
                turned = ctx.rounding(grad_no, E5M2, by_columns=True, scale=None if grad is None else grad.scale)
            d_weight = fp8_product(Rounded(turned.values.t(), turned.scale), Rounded(*x_parts)).to(weight_od.dtype)
        d_bias = grad_no.float().sum(0).to(ctx.dtypes[1]) if needs_bias else None
        return d_x, d_weight, d_bias, grad_no.to(ctx.dtypes[2]) if needs_base else None, None
