"""Tensors as integers with a scale: quantised by tensor or by channel, multiplied, and normalised.

    t ~ scale (q - zero_point)

as in Jacob et al., 2018, arXiv:1712.05877, equation 1. Everything is made of torch's operations and runs on any device.
Integer products are summed exactly; only the scales are rounded. None of it has a gradient.

On an accelerator for which an installed plugin serves `integers` (`finetooth_hooks.Serves`), that plugin's kernels
compute where they can read the tensors. Before their first use on a device they are compared with torch in float64; if
they are wrong or fail, a warning says so, and torch computes there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from importlib import import_module
from importlib.metadata import entry_points
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from finetooth_kernels.contract import result_dtype
from finetooth_kernels.counted_rows import without_autocast
from finetooth_kernels.triton_devices import interpreted

__all__ = [
    "Activation",
    "IntegerKernels",
    "Levels",
    "Quantized",
    "dequantize",
    "fbgemm",
    "levels",
    "qgemm",
    "quantize_per_channel",
    "quantize_per_tensor",
    "quantized_layernorm",
]

Activation = Literal["relu", "silu", "gelu", "gelu_tanh"]

_EXACT = 1024
"""Products of two int8 values of which float32 holds every sum exactly: 1024 * 128^2 = 2^24."""
_INT32 = 1 << 17
"""Products of two int8 values whose sum may not fit into int32."""


class Quantized(NamedTuple):
    """A tensor as integers.

    Attributes:
        q: int8, in the tensor's shape.
        scale: float32 (float64 of a float64 tensor), () or the tensor's shape with 1 for all axes but the channel's.
        zero_point: int32 in the shape of `scale`, the integer code of 0.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor


class Levels(NamedTuple):
    """What numbers are rounded to: scale (level - zero_point), of whole levels from `lowest` to `most`."""

    scale: Tensor
    zero_point: Tensor
    lowest: int
    most: int


class IntegerKernels(Protocol):
    """Kernels of a device, which a provider of `integers` returns. Arguments fit together; the kernels return None for
    tensors that they do not read."""

    def rescaled(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int] | None = None
    ) -> Tensor | None:
        """The nearest levels of numbers within bounds, int8; without bounds the numbers of levels."""
        ...

    def product(
        self, a_q: Tensor, a_scale: Tensor, a_zero: Tensor | int, b_q: Tensor, b_scale: Tensor, b_zero: Tensor | int,
        bias: Tensor | None, activation: Activation | None,
    ) -> Tensor | None:  # fmt: skip
        """See `fbgemm`."""
        ...

    def normed(
        self, q: Tensor, scale: Tensor, weight: Tensor, bias: Tensor | None, eps: float, bits: int, symmetric: bool
    ) -> Quantized | None:
        """See `quantized_layernorm`, which no zero point changes."""
        ...


def quantize_per_tensor(t: Tensor, bits: int = 8, *, symmetric: bool = True) -> Quantized:
    """Quantise a tensor with one scale.

    Args:
        t: floating point, any shape.
        bits: from 2 to 8; the integers are always stored as int8.
        symmetric: whether 0 is stored as 0, which `qgemm` needs no zero points for; otherwise the integers spread from
            the least number to the greatest.

    Raises:
        ValueError: naming the argument, for bits out of range, a tensor of integers, NaN or infinity.
    """
    _check(t, bits)
    return _quantized(t.detach(), None, bits, symmetric)


def quantize_per_channel(t: Tensor, bits: int = 8, axis: int = 0, *, symmetric: bool = True) -> Quantized:
    """Quantise a tensor with a scale for each index of an axis.

    Args:
        t: floating point, of at least one axis.
        bits: see `quantize_per_tensor`.
        axis: of the channels: 0 for the outputs of a linear layer's weight.
        symmetric: see `quantize_per_tensor`.

    Raises:
        ValueError: see `quantize_per_tensor`; or the tensor has no such axis.
    """
    _check(t, bits)
    if not -t.dim() <= axis < t.dim():
        raise ValueError(f"axis: {axis} is none of a tensor of shape {tuple(t.shape)}")
    return _quantized(t.detach(), axis % t.dim(), bits, symmetric)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    """The numbers that integers stand for, scale (q - zero_point), in the dtype of `scale`."""
    if (kernels := _kernels(q.device)) is not None:
        zeros = zero_point if isinstance(zero_point, Tensor) else torch.full_like(scale, zero_point, dtype=torch.int32)
        if (numbers := kernels.rescaled(q, scale, zeros)) is not None:
            return numbers
    return (q.to(torch.int32) - zero_point).to(scale.dtype).mul_(scale)


def qgemm(
    a_q: Tensor, a_scale: Tensor, b_q: Tensor, b_scale: Tensor,
    *, a_zero_point: Tensor | int = 0, b_zero_point: Tensor | int = 0,
) -> Tensor:  # fmt: skip
    """The product of two quantised matrices.

    Args:
        a_q: (M, K) int8.
        a_scale: () or (M, 1).
        b_q: (K, N) int8. Of a linear layer's weight (N, K) that was quantised by channel, it is `q.t()`.
        b_scale: () or (1, N), then `scale.t()`.
        a_zero_point, b_zero_point: in the shapes of the scales, for tensors that were not quantised symmetrically.

    Returns:
        (M, N) in the dtype of `a_scale`. The sum over K is exact.

    Raises:
        ValueError: naming the argument, for a dtype or a shape that does not fit.
    """
    return fbgemm(a_q, a_scale, b_q, b_scale, a_zero_point=a_zero_point, b_zero_point=b_zero_point)


def _product(
    a_q: Tensor, a_scale: Tensor, a_zero_point: Tensor | int, b_q: Tensor, b_scale: Tensor, b_zero_point: Tensor | int
) -> Tensor:
    """See `qgemm`."""
    total = _integer_product(a_q, b_q)
    if _shifted(b_zero_point):
        total = total - a_q.sum(1, keepdim=True) * b_zero_point
    if _shifted(a_zero_point):
        total = total - a_zero_point * (b_q.sum(0, keepdim=True) - a_q.shape[1] * b_zero_point)
    return total.to(a_scale.dtype).mul_(a_scale).mul_(b_scale)


def fbgemm(
    a_q: Tensor, a_scale: Tensor, b_q: Tensor, b_scale: Tensor,
    bias: Tensor | None = None, activation: Activation | None = None,
    *, a_zero_point: Tensor | int = 0, b_zero_point: Tensor | int = 0,
) -> Tensor:  # fmt: skip
    """A linear layer of quantised numbers: `qgemm`, plus a bias, through an activation.

    Args:
        bias: (N,), floating point.
        activation: `relu`, `silu`, `gelu` or `gelu_tanh`.

    Raises:
        ValueError: see `qgemm`; or an activation it does not know, or a bias of another shape.
    """
    _check_product(a_q, a_scale, a_zero_point, b_q, b_scale, b_zero_point)
    if activation not in (None, "relu", "silu", "gelu", "gelu_tanh"):
        raise ValueError(f"activation: {activation!r} is unknown; there are relu, silu, gelu, gelu_tanh")
    if bias is not None and bias.shape != b_q.shape[1:]:
        raise ValueError(f"bias: shape {tuple(bias.shape)} does not fit the {b_q.shape[-1]} columns of b_q")
    given = a_q, a_scale, a_zero_point, b_q, b_scale, b_zero_point
    if (kernels := _kernels(a_q.device)) and (made := kernels.product(*given, bias, activation)) is not None:
        return made
    rows = _product(*given)
    if bias is not None:
        rows += bias
    if activation == "relu":
        return functional.relu(rows)
    if activation == "silu":
        return functional.silu(rows)
    if activation is None:
        return rows
    return functional.gelu(rows, approximate="tanh" if activation == "gelu_tanh" else "none")


def quantized_layernorm(
    q: Tensor, scale: Tensor, zero_point: Tensor | int, weight: Tensor, bias: Tensor | None = None,
    eps: float = 1e-5, *, bits: int = 8, symmetric: bool = True,
) -> Quantized:  # fmt: skip
    """The layer norm (Ba et al., 2016, arXiv:1607.06450) of quantised rows, quantised by tensor.

    Args:
        q, scale, zero_point: (..., D), as `quantize_per_tensor` gives them.
        weight, bias: (D,), floating point.
        eps: added to the variance.
        bits, symmetric: of the result, see `quantize_per_tensor`.

    Raises:
        ValueError: see `quantize_per_tensor`; or the weight or the bias has another size than the rows.
    """
    for name, of in (("weight", weight), ("bias", bias)):
        if of is not None and of.shape != q.shape[-1:]:
            raise ValueError(f"{name}: shape {tuple(of.shape)} does not fit rows of {q.shape[-1]}")
    _check_bits(bits)
    kernels = _kernels(q.device)
    if kernels and (made := kernels.normed(q, scale, weight, bias, eps, bits, symmetric)) is not None:
        return made
    rows = dequantize(q, scale, zero_point)
    normed = functional.layer_norm(
        rows, q.shape[-1:], weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype), eps
    )
    return quantize_per_tensor(normed, bits, symmetric=symmetric)


def levels(least: Tensor, greatest: Tensor, bits: int, symmetric: bool) -> Levels:
    """Levels from the least numbers, of any shape, to the greatest, of the same shape; 0 is among them.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    if not (least.isfinite() & greatest.isfinite()).all():
        raise ValueError("t: it holds NaN or infinity, which integers cannot store")
    most = (1 << bits - 1) - 1
    if symmetric:
        scale, lowest = torch.maximum(greatest, -least) / most, -most
    else:
        count, lowest = (1 << bits) - 1, -most - 1
        scale = greatest.clamp_min(0) / count - least.clamp_max(0) / count
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    if symmetric:
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
    else:
        zero_point = (lowest - least.clamp_max(0) / scale).round().clamp(lowest, most).to(torch.int32)
    return Levels(scale, zero_point, lowest, most)


def _quantized(t: Tensor, axis: int | None, bits: int, symmetric: bool) -> Quantized:
    """Each number at its nearest level, with a scale for each index of an axis."""
    t = t.float() if t.element_size() == 1 else t  # torch does not compare numbers of 8 bits
    others = [at for at in range(t.dim()) if at != axis]
    if axis is None:
        bounds = (t.amin(), t.amax()) if t.numel() else (t.new_zeros(()),) * 2
    elif not t.numel():
        bounds = (t.new_zeros([1 if at in others else size for at, size in enumerate(t.shape)]),) * 2
    else:
        bounds = (t.amin(others, True), t.amax(others, True)) if others else (t, t)
    wide = result_dtype(t.dtype)
    scale, zero_point, lowest, most = levels(bounds[0].to(wide), bounds[1].to(wide), bits, symmetric)
    kernels = _kernels(t.device)
    if kernels and (q := kernels.rescaled(t, scale, zero_point, (lowest, most))) is not None:
        return Quantized(q, scale, zero_point)
    q = (t.to(wide) / scale).round().add_(zero_point).clamp_(lowest, most).to(torch.int8)
    return Quantized(q, scale, zero_point)


def _check(t: Tensor, bits: int) -> None:
    _check_bits(bits)
    if not t.is_floating_point():
        raise ValueError(f"t: {str(t.dtype).removeprefix('torch.')} does not hold floating-point numbers")


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits: {bits} is not from 2 to 8")


def _check_product(
    a_q: Tensor, a_scale: Tensor, a_zero: Tensor | int, b_q: Tensor, b_scale: Tensor, b_zero: Tensor | int
) -> None:
    for name, matrix in (("a_q", a_q), ("b_q", b_q)):
        if matrix.dtype != torch.int8 or matrix.dim() != 2:
            dtype = str(matrix.dtype).removeprefix("torch.")
            raise ValueError(f"{name}: {dtype} of shape {tuple(matrix.shape)} is not an int8 matrix")
    if a_q.shape[1] != b_q.shape[0]:
        raise ValueError(f"b_q: its {b_q.shape[0]} rows do not fit the {a_q.shape[1]} columns of a_q")
    row, column = (a_q.shape[0], 1), (1, b_q.shape[1])
    terms = (("a_scale", a_scale, row), ("a_zero_point", a_zero, row), ("b_scale", b_scale, column),
             ("b_zero_point", b_zero, column))  # fmt: skip
    for name, of, shape in terms:
        if isinstance(of, Tensor) and tuple(of.shape) not in ((), (1, 1), shape):
            raise ValueError(f"{name}: shape {tuple(of.shape)} is neither () nor {shape}")


def _shifted(zero_point: Tensor | int) -> bool:
    """Whether a zero point takes part; one that is a tensor is not looked at, which a device would wait for."""
    return isinstance(zero_point, Tensor) or zero_point != 0


def _integer_product(a_mk: Tensor, b_kn: Tensor) -> Tensor:
    """The exact product of int8 matrices, int32, or int64 where that could be too small.

    Devices multiply int8 into int32 for some shapes only, and some not at all. Float32 holds the sums of `_EXACT`
    products exactly, also where its operands are rounded to TF32 or bfloat16, which have the 8 bits.
    """
    wide = torch.int64 if a_mk.shape[1] >= _INT32 else torch.int32
    total = torch.zeros(a_mk.shape[0], b_kn.shape[1], dtype=wide, device=a_mk.device)
    with without_autocast(a_mk.device):
        for start in range(0, a_mk.shape[1], _EXACT):
            part = slice(start, start + _EXACT)
            total += torch.mm(a_mk[:, part].float(), b_kn[part].float()).to(wide)
    return total


# --- kernels of a device ----------------------------------------------------------------------------------------------

OPERATION = "integers"
"""What a provider's entry declares: its function returns `IntegerKernels`."""
_CHOSEN: dict[torch.device, IntegerKernels | None] = {}
"""Of devices on which a function was called; None: torch computes."""
_TRIAL: ContextVar[tuple[IntegerKernels | None] | None] = ContextVar("trial", default=None)
"""What computes in this thread, whatever the device, while kernels are compared."""


def _kernels(device: torch.device) -> IntegerKernels | None:
    """The kernels of the highest rank that run on a device and are right there."""
    if trial := _TRIAL.get():
        return trial[0]
    if device not in _CHOSEN:
        chosen = None
        for name, build in _declared(str(device)):
            try:
                chosen = _built(build, str(device))
                wrong = "" if chosen is None else _wrong(chosen, device)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of a compiler, in its own words
                wrong = f"fail: {' '.join(str(error).split())[:300]}"
            if wrong:
                chosen, said = None, f"the kernels {name} {wrong} on {device}; they are not used there"
                warnings.warn(f"{OPERATION}: {said}", stacklevel=3)
            elif chosen is not None:
                break
        _CHOSEN[device] = chosen
    return _CHOSEN[device]


def _declared(device: str) -> list[tuple[str, str]]:
    """Names and builders of providers for a device, the highest rank first."""
    kind, ranked = device.partition(":")[0], list[tuple[int, str, str]]()
    if kind == "cpu" and not interpreted():
        return []  # to load every plugin takes longer than what is called here
    for point in entry_points(group="finetooth"):
        with suppress(Exception):  # `ft plugins doctor` says what is wrong with a plugin
            for entry in getattr(point.load(), "ft_kernels", list)():
                for serves in entry.serves:
                    here = kind == "cpu" or kind in serves.devices
                    if serves.operation == OPERATION and here and serves.rank is not None:
                        ranked.append((serves.rank, entry.name, entry.build))
    return [(name, build) for _, name, build in sorted(ranked, reverse=True)]


def _built(build: str, device: str) -> IntegerKernels | None:
    """The kernels of a provider; None if they cannot run on a device."""
    module, _, attribute = build.partition(":")
    provider = getattr(import_module(module), attribute)()
    return None if provider.missing(OPERATION, device, "fp32") else provider.functions[OPERATION]()


def _wrong(kernels: IntegerKernels, device: torch.device) -> str:
    """How results of kernels differ from torch's in float64; empty if they do not."""
    t = torch.randn(17, 33, generator=torch.Generator().manual_seed(244))  # whose quotients lie off ties
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "quantise": lambda t: dequantize(*quantize_per_channel(t, symmetric=False)),
        "multiply": lambda t: _squared(quantize_per_channel(t, symmetric=False), t[:, 0]),
        "normalise": lambda t: dequantize(*quantized_layernorm(*quantize_per_tensor(t), t[0], t[1])),
    }

    def by(computing: IntegerKernels | None, call: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        _TRIAL.set((computing,))
        return call(t).cpu().double()

    for what, call in calls.items():
        exact, ours = (copy_context().run(by, *of) for of in ((None, call, t.double()), (kernels, call, t.to(device))))
        if not bool((ours - exact).abs().max() <= 1e-5 * exact.abs().max()):
            return f"{what} wrongly"
    return ""


def _squared(t: Quantized, bias: Tensor) -> Tensor:
    zeros = {"a_zero_point": t.zero_point, "b_zero_point": t.zero_point.t()}
    return fbgemm(t.q, t.scale, t.q.t(), t.scale.t(), bias, "gelu_tanh", **zeros)
