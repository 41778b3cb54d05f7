"""The compiled kernels as Python methods that take tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from finetooth_kernels.capture import NOTED
from finetooth_kernels.memory import new_empty
from torch import Tensor, nn
from torch.profiler import record_function

from finetooth_native.packed_weight import PackedWeight

__all__ = ["ACTIVATION_NUMBERS", "ALONE_UP_TO", "DTYPE_NUMBERS", "KERNEL_SPAN", "Library", "readable"]

DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1}
"""What the sources call a dtype; the kernels take no other."""

ACTIVATION_NUMBERS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}

ALONE_UP_TO = 4
"""Kernels that were compiled without OpenMP run on one thread; torch's operations on more than this many are faster."""

_SIGNATURES: dict[str, list[Any]] = {
    "ft_rms_norm": [c_int, c_int, *[c_void_p] * 4, c_int64, c_int64, c_float, c_int],
    "ft_rms_norm_backward": [c_int, c_int, *[c_void_p] * 6, c_int64, c_int64, c_int],
    "ft_rms_norm_weight_backward": [c_int, c_int, *[c_void_p] * 5, c_int64, c_int64, c_int],
    "ft_gated": [c_int, c_int, *[c_void_p] * 2, c_int64, c_int64, c_int],
    "ft_gated_backward": [c_int, c_int, *[c_void_p] * 3, c_int64, c_int64, c_int],
    "ft_head_rows": [c_int, c_int, *[c_void_p] * 6, *[c_int64] * 3, c_float, c_int, c_int],
    "ft_few_rows": [
        *(c_int, c_int, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_int64),
        *(c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int),
    ],
    "ft_few_rows_layout": [c_int, c_void_p, c_void_p, c_void_p],
    "ft_mm": [
        *(c_int, c_int, *(c_void_p, *[c_int64] * 2, c_void_p, *[c_int64] * 3) * 2),
        *(c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int),
    ],
    "ft_scaled": [c_int, c_void_p, c_int, c_void_p, c_float, c_int, c_int64, c_int],
    "ft_rotate": [c_int, *[c_void_p] * 4, *[c_int64] * 5, c_float, c_int],
    "ft_dropped": [c_int, *[c_void_p] * 4, *[c_int64] * 2, c_int, c_float, c_int],
}


_PLAIN = (Tensor, nn.Parameter)

KERNEL_SPAN = "finetooth::"
"""How torch's profiler names what a compiled kernel takes: this and the kernel's name; a product's shape behind it."""


_recording: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]


def _kernel(name: str, function: Callable[..., Any], failing: str | None) -> Callable[..., None]:
    """The function, noted, with a span of torch's profiler while it records."""

    def call(*arguments: Any) -> None:
        if NOTED.calls is not None:
            NOTED.calls.append((call, arguments))
        if not _recording():
            failed = function(*arguments)
        else:
            with record_function(name):
                failed = function(*arguments)
        if failed:
            raise MemoryError(failing)

    return call


def readable(*tensors: Tensor, strided: bool = False) -> bool:
    """Whether kernels can read these: on the CPU, all float32 or all bfloat16, no subclass, not traced; and contiguous.

    Args:
        strided: numbers may also lie apart, in any strides.
    """
    dtype = tensors[0].dtype
    if dtype not in DTYPE_NUMBERS or torch.compiler.is_compiling():
        return False
    for x in tensors:  # no generator: this is asked before every kernel
        if x.dtype is not dtype or not x.is_cpu or type(x) not in _PLAIN or x.layout is not torch.strided:
            return False
        if not strided and not x.is_contiguous():
            return False
    return True


class Library:
    """The kernels of one compiled file. Calls release the interpreter's lock and use torch's number of threads.

    Tensors must be such as `readable` accepts, and fit together: the kernels check nothing.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it lacks a function.
    """

    def __init__(self, path: Path) -> None:
        self._loaded = ctypes.CDLL(str(path))
        self._c = {name: self.kernel(name, signature) for name, signature in _SIGNATURES.items()}
        self._rows_a_sum: int = self.function("ft_rms_norm_rows_a_sum", [], c_int64)()
        is_fast = self.function("ft_mm_is_fast", [c_int], c_int)
        self._fast = {dtype for dtype, number in DTYPE_NUMBERS.items() if is_fast(number)}
        turns = self.function("ft_mm_turns", [c_int], c_int)
        self._turning = {dtype for dtype, number in DTYPE_NUMBERS.items() if turns(number)}
        self.threaded = bool(self.function("ft_has_threads", [], c_int)())
        """Whether it was compiled with OpenMP."""

    def function(self, name: str, arguments: list[Any], result: Any) -> Any:
        """A C function by name that tells something, with ctypes' types of its arguments and of its result."""
        function = getattr(self._loaded, name)
        function.argtypes, function.restype = arguments, result
        return function

    def kernel(self, name: str, arguments: list[Any], failing: str | None = None) -> Callable[..., None]:
        """A C function by name that computes, with ctypes' types of its arguments.

        Args:
            failing: what the MemoryError says where it returns anything but 0; None: it returns nothing.
        """
        function = self.function(name, arguments, None if failing is None else c_int)
        return _kernel(name.replace("ft_", KERNEL_SPAN, 1), function, failing)

    def rms_norm(
        self, x_nd: Tensor, weight_d: Tensor, eps: float, inverse_n: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(..., D) normalised rows in the weight's dtype and (..., 1) float32, the inverse roots.

        Rows have the weight's dtype or a wider one, here and in backward.

        Args:
            inverse_n: where to write the roots.
        """
        y_nd = new_empty(x_nd, dtype=weight_d.dtype)
        inverse_n = _of_rows(x_nd) if inverse_n is None else inverse_n
        self._c["ft_rms_norm"](
            DTYPE_NUMBERS[x_nd.dtype], DTYPE_NUMBERS[weight_d.dtype], x_nd.data_ptr(), weight_d.data_ptr(),
            y_nd.data_ptr(), inverse_n.data_ptr(), inverse_n.numel(), x_nd.shape[-1], eps, torch.get_num_threads(),
        )  # fmt: skip
        return y_nd, inverse_n

    def rms_norm_backward(
        self, grad_nd: Tensor, x_nd: Tensor, weight_d: Tensor, inverse_n: Tensor, beside_nd: Tensor | None = None
    ) -> Tensor:
        """The gradient of `x_nd`, plus `beside_nd`, a gradient that reaches it on another way."""
        d_x_nd = new_empty(x_nd)
        self._c["ft_rms_norm_backward"](
            DTYPE_NUMBERS[x_nd.dtype], DTYPE_NUMBERS[weight_d.dtype], grad_nd.data_ptr(),
            None if beside_nd is None else beside_nd.data_ptr(), x_nd.data_ptr(), weight_d.data_ptr(),
            inverse_n.data_ptr(), d_x_nd.data_ptr(), inverse_n.numel(), x_nd.shape[-1], torch.get_num_threads(),
        )  # fmt: skip
        return d_x_nd

    def rms_norm_weight_backward(self, grad_nd: Tensor, x_nd: Tensor, inverse_n: Tensor) -> Tensor:
        """The gradient of the weight, (D,); the same for any number of threads."""
        rows, width = inverse_n.numel(), x_nd.shape[-1]
        partial = torch.empty((-(-rows // self._rows_a_sum), width), dtype=torch.float32)
        d_weight_d = grad_nd.new_empty(width)
        self._c["ft_rms_norm_weight_backward"](
            DTYPE_NUMBERS[x_nd.dtype], DTYPE_NUMBERS[grad_nd.dtype], grad_nd.data_ptr(), x_nd.data_ptr(),
            inverse_n.data_ptr(), partial.data_ptr(), d_weight_d.data_ptr(), rows, width, torch.get_num_threads(),
        )  # fmt: skip
        return d_weight_d

    def gated(self, gate_up_nf: Tensor, activation: str) -> Tensor:
        """(N, 2 F) to (N, F)."""
        rows, width = gate_up_nf.shape[0], gate_up_nf.shape[1] // 2
        y_nf = new_empty(gate_up_nf, (rows, width))
        self._c["ft_gated"](
            DTYPE_NUMBERS[gate_up_nf.dtype], ACTIVATION_NUMBERS[activation], gate_up_nf.data_ptr(), y_nf.data_ptr(),
            rows, width, torch.get_num_threads(),
        )  # fmt: skip
        return y_nf

    def gated_backward(self, grad_nf: Tensor, gate_up_nf: Tensor, activation: str) -> Tensor:
        """The gradient of `gate_up_nf`."""
        d_gate_up = new_empty(gate_up_nf)
        self._c["ft_gated_backward"](
            DTYPE_NUMBERS[gate_up_nf.dtype], ACTIVATION_NUMBERS[activation], grad_nf.data_ptr(), gate_up_nf.data_ptr(),
            d_gate_up.data_ptr(), grad_nf.shape[0], grad_nf.shape[1], torch.get_num_threads(),
        )  # fmt: skip
        return d_gate_up

    def head_rows(
        self, logits_nv: Tensor, targets_nk: Tensor, logprobs_nk: Tensor, log_normalizer_n1: Tensor,
        entropy_n: Tensor | None, top1_n: Tensor | None, slope: float, *, gradient: torch.dtype | None,
    ) -> None:  # fmt: skip
        """Scores of rows of logits, written into the tensors that are given.

        Args:
            logits_nv: (N, V), what the head's linear layer put out; a logit is `slope` times that.
            targets_nk: may be `top1_n`, which is written first.
            gradient: replace each by the gradient of the row's log-probability with respect to the logit, in this
                dtype; one target a row. A narrower one than the logits' takes the first part of a row.
        """
        rows, vocabulary = logits_nv.shape
        self._c["ft_head_rows"](
            DTYPE_NUMBERS[logits_nv.dtype], DTYPE_NUMBERS[gradient or logits_nv.dtype], logits_nv.data_ptr(),
            targets_nk.data_ptr(), logprobs_nk.data_ptr(), log_normalizer_n1.data_ptr(),
            None if entropy_n is None else entropy_n.data_ptr(), None if top1_n is None else top1_n.data_ptr(), rows,
            vocabulary, targets_nk.shape[1], slope, gradient is not None, torch.get_num_threads(),
        )  # fmt: skip

    def few_rows_layout(self, dtype: torch.dtype) -> tuple[int, int, int]:
        """How a weight is packed for `few_rows`: outputs in a panel, how many the last one has at least (as many as all
        others: panels hold all inputs), and inputs that stand together."""
        panel, least, together = c_int64(), c_int64(), c_int64()
        numbers = (ctypes.byref(number) for number in (panel, least, together))
        self._c["ft_few_rows_layout"](DTYPE_NUMBERS[dtype], *numbers)
        return panel.value, least.value, together.value

    def few_rows(
        self, x_nd: Tensor, weight: PackedWeight | None, outputs: int, *,
        own: Sequence[tuple[int, int, Tensor, PackedWeight]] = (), bias_o: Tensor | None = None,
        base_no: Tensor | None = None, dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, D) to (N, O): x W^T + bias + base, and for some rows x2 W2^T of their own, summed in float32.

        Args:
            weight: W, see `few_rows_layout`; None: there is none.
            own: from which row up to which; x2, of all rows, of which the first columns count; W2.
            base_no: of the result's dtype. Its rows may lie apart, as those of x and x2 may.
            dtype: of the result; that of `base_no`, else of x, if it is None.
        """
        dtype = dtype or (x_nd.dtype if base_no is None else base_no.dtype)
        y_no = x_nd.new_empty((x_nd.shape[0], outputs), dtype=dtype)
        runs = [
            number
            for start, stop, of, added in own
            for number in (
                start, stop - start, of.data_ptr() + start * of.stride(0) * of.element_size(), of.stride(0),
                added.numbers.data_ptr(), added.inputs, added.outputs,
                0 if added.parts is None else added.parts.data_ptr(),
            )
        ]  # fmt: skip
        self._c["ft_few_rows"](
            DTYPE_NUMBERS[x_nd.dtype], DTYPE_NUMBERS[y_no.dtype], x_nd.data_ptr(), x_nd.stride(0),
            None if weight is None else weight.numbers.data_ptr(), 0 if weight is None else x_nd.shape[1],
            None if weight is None or weight.parts is None else weight.parts.data_ptr(),
            (c_int64 * len(runs))(*runs), len(own), None if bias_o is None else bias_o.data_ptr(),
            None if base_no is None else base_no.data_ptr(), 0 if base_no is None else base_no.stride(0),
            y_no.data_ptr(), *y_no.shape, torch.get_num_threads(),
        )  # fmt: skip
        return y_no

    def multiplies_fast(self, dtype: torch.dtype) -> bool:
        """Whether `mm` is faster than torch's on a machine like this; the same in every process on it.

        Their numbers are the same too, but where the system lets one process use the matrix unit and not another.
        """
        return dtype in self._fast

    def turns(self, dtype: torch.dtype) -> bool:
        """Whether `mm` takes left factors whose columns' numbers stand next to each other, and is faster there too."""
        return dtype in self._turning

    def mm(
        self, left_nk: Tensor, right_ko: Tensor, *, more: tuple[Tensor, Tensor] | None = None,
        bias_o: Tensor | None = None, base_no: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, O): left right + more[0] more[1] + bias + base, summed in float32.

        Numbers stand next to each other in rows of left factors (or in columns, where it `turns` them) and of base, and
        along one axis of right factors.

        Args:
            base_no: of the result's dtype.
            out: where to write the result, contiguous; of the factors' dtype or a wider one. None: new memory, in the
                dtype of `base_no`, else of the factors.
        """
        dtype = left_nk.dtype if base_no is None else base_no.dtype
        out_no = new_empty(left_nk, (left_nk.shape[0], right_ko.shape[1]), dtype) if out is None else out
        second = (None, 0, 0, None, 0, 0, 0) if more is None else _factors(*more)
        rows, inner, columns = *left_nk.shape, right_ko.shape[1]
        arguments = (
            DTYPE_NUMBERS[left_nk.dtype], DTYPE_NUMBERS[out_no.dtype], *_factors(left_nk, right_ko), *second,
            None if bias_o is None else bias_o.data_ptr(), None if base_no is None else base_no.data_ptr(),
            0 if base_no is None else base_no.stride(0), out_no.data_ptr(), rows, columns, torch.get_num_threads(),
        )  # fmt: skip
        if not _recording():
            self._c["ft_mm"](*arguments)
            return out_no
        with record_function(f"{KERNEL_SPAN}mm {rows} x {inner} x {columns}"):
            self._c["ft_mm"](*arguments)
        return out_no

    def scaled(self, x: Tensor, out: Tensor, factor: float, *, add: bool) -> None:
        """Write x * factor to `out`, or add it; the two may differ in dtype, and not in shape."""
        self._c["ft_scaled"](
            DTYPE_NUMBERS[x.dtype], x.data_ptr(), DTYPE_NUMBERS[out.dtype], out.data_ptr(), factor, add, x.numel(),
            torch.get_num_threads(),
        )  # fmt: skip

    def rotate(self, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, *, back: bool, out: Tensor) -> Tensor:
        """Into `out`: the first `heads` heads turned, against the angles if `back`, and the others as they are; angles
        are float32 whatever the dtype of x."""
        rows, all_heads, size = x_nhd.shape
        self._c["ft_rotate"](
            DTYPE_NUMBERS[x_nhd.dtype], x_nhd.data_ptr(), cos_nr.data_ptr(), sin_nr.data_ptr(), out.data_ptr(),
            rows, all_heads, heads, size, cos_nr.shape[-1], -1.0 if back else 1.0, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def dropped(self, x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
        """(N, D), what the int32 words of rows and columns leave, times `scale`; all contiguous."""
        y_nd = new_empty(x_nd)
        self._c["ft_dropped"](
            DTYPE_NUMBERS[x_nd.dtype], x_nd.data_ptr(), rows_n.data_ptr(), columns_d.data_ptr(), y_nd.data_ptr(),
            *x_nd.shape, threshold, scale, torch.get_num_threads(),
        )  # fmt: skip
        return y_nd


def _of_rows(x_nd: Tensor) -> Tensor:
    """One float32 a row, shaped to multiply `x_nd`."""
    return torch.empty((*x_nd.shape[:-1], 1), dtype=torch.float32)


def _factors(left_nk: Tensor, right_ko: Tensor) -> tuple[int, ...]:
    return left_nk.data_ptr(), *left_nk.stride(), right_ko.data_ptr(), *right_ko.stride(), left_nk.shape[1]
