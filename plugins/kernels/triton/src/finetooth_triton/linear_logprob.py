"""`linear_logprob` in Triton kernels: a chunk of float32 logits is in memory at a time.

*Forward.* One way, whatever is asked for and whether or not anything trains, so that the same states get the same
numbers in training and in scoring: a chunk of rows is multiplied with the head, its sums stay float32
(`finetooth_triton.wide_linear`), and a kernel reads each row once, keeping the running largest logit, the sum of
exponentials, what the entropy needs and the likeliest id. It is the kernel that reads the logits of sampling
(`finetooth_triton.logits`). Nothing is added atomically, so results repeat bit for bit.

*Frozen head, one target per row* (adapters). As in the chunked implementation the gradient is formed in the forward
pass, up to its incoming factor, from the chunk that is there anyway: two matrix products over the vocabulary instead
of three. It is rounded to the dtype of the inputs, for the product with the head.

*Backward, otherwise.* A kernel computes tiles of logits again, turns each into its gradient and writes a chunk of them,
in the dtype of the inputs, for the library's matrix products with weight and hidden states. Chunks are cut along the
vocabulary, not the rows: then each row of the weight's gradient is written once instead of being added to once a
chunk, and only the hidden states' gradient, which is far smaller, has to be accumulated, in float32. Cut Cross-Entropy
(arXiv:2411.09009) fuses those products too, with locks, and is fast because it leaves out tiles of small gradients;
here nothing is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from finetooth_kernels.autograd import once_differentiable
from finetooth_kernels.chunked_head import Head
from finetooth_kernels.compiled import Compiled
from finetooth_kernels.contract import DEFAULT_CHUNK_BYTES, Gradients, LinearLogprob, check_arguments
from finetooth_kernels.counted_rows import CountedRows, as_autocast, without_autocast
from finetooth_kernels.linear_logprob import linear_logprob
from finetooth_kernels.mm import mm
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.gpu import available
from finetooth_triton.launch import Operands, Scores, gradient_tiles, row_gradients, row_scores
from finetooth_triton.layers import readable
from finetooth_triton.wide_linear import multiplies_into_float32, wide_linear

__all__ = ["available", "linear_logprob_triton"]

_LEAST_COLUMNS = 2048
"""Of the vocabulary in one chunk of the backward pass: fewer would make its matrix products slow."""


def linear_logprob_triton(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    bias_v: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    top1: bool = False,
    expected: Tensor | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    added: tuple[Tensor, Tensor] | None = None,
) -> LinearLogprob:
    """What `finetooth_kernels.linear_logprob.linear_logprob` computes, argument for argument, on a CUDA or ROCm device.

    Inputs are float32, bfloat16 or float16; everything is accumulated in float32, and logits are not rounded to the
    inputs' dtype. float32 is multiplied as torch does it: in TensorFloat-32 only where torch was
    told to. Results and gradients repeat bit for bit on the same device.
    `expected` is checked and otherwise ignored. With `added` torch's operations compute it, of float32 logits too.

    Memory without inputs and gradients: in a forward pass `chunk_bytes` of logits (or one row of them, where that is
    more), a few numbers per row, and a vector of length D per row where the head is frozen; in a backward pass
    `chunk_bytes` of gradients and up to two float32 copies of `hidden_nd`.

    Raises:
        ValueError: as `linear_logprob` does, and for float64, or a device that Triton kernels cannot run on.
    """
    if added is not None:
        return linear_logprob(
            hidden_nd.contiguous(), weight_vd.contiguous(), targets, mask=mask, bias_v=bias_v, scale=scale,
            softcap=softcap, temperature=temperature, entropy=entropy, top1=top1, expected=expected,
            chunk_bytes=chunk_bytes, added=added, compiled=_SUMS,
        )  # fmt: skip
    hidden_nd, weight_vd, bias_v = as_autocast(hidden_nd, weight_vd, bias_v)
    check_arguments(
        hidden_nd, weight_vd, targets, mask, bias_v, None,
        scale=scale, softcap=softcap, temperature=temperature, expected=expected, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    counted = CountedRows.of(hidden_nd, targets, mask, weight_vd.shape[0])
    gpu.check_runs("hidden_nd", hidden_nd)
    head = Head(scale, softcap, temperature)
    wanted = _Request(entropy, top1, torch.is_grad_enabled(), chunk_bytes)
    logprobs_mk, entropy_m, top1_m = _LinearLogprob.apply(  # type: ignore[no-untyped-call]
        counted.hidden_md, weight_vd, bias_v, counted.targets_mk, head, wanted
    )
    return counted.result(logprobs_mk, entropy_m if entropy else None, top1_m if top1 else None)


class _Sums:
    """The part of `finetooth_kernels.compiled.Library` by which logits stay sums in float32."""

    def multiplies_fast(self, dtype: torch.dtype) -> bool:
        """Whether `mm` takes the dtype: `_sums_for` has looked."""
        return True

    turns = multiplies_fast

    def mm(
        self, left_nk: Tensor, right_ko: Tensor, *, more: tuple[Tensor, Tensor] | None = None,
        bias_o: Tensor | None = None, base_no: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """See `finetooth_kernels.mm.mm`; only a result in float32 is summed in it."""
        if out is None or out.dtype == left_nk.dtype:
            return mm(left_nk, right_ko, more=more, bias_o=bias_o, base_no=base_no, out=out)
        wide_no = wide_linear(left_nk, right_ko.t(), bias_o)
        for added_no in (None if more is None else wide_linear(more[0], more[1].t()), base_no):
            wide_no = wide_no if added_no is None else wide_no.add_(added_no)
        return out.copy_(wide_no)


def _sums_for(*tensors: Tensor, strided: bool = False) -> _Sums | None:
    """For products alone, which ask for any strides."""
    half = tensors[0].dtype in (torch.bfloat16, torch.float16)
    return _Sums() if half and strided and readable(*tensors, strided=True) else None


_SUMS = Compiled(_sums_for, readable)


class _Request(NamedTuple):
    """What was asked for, and within which memory."""

    entropy: bool
    top1: bool
    gradients: bool
    chunk_bytes: int


class _LinearLogprob(torch.autograd.Function):
    """From the M rows that count to log-probabilities (M, K), entropy and top-1 (M,), each (0,) when not asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_md: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        targets_mk: Tensor,
        head: Head,
        wanted: _Request,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_head = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        at_once = wanted.gradients and needs_hidden and not needs_head and targets_mk.shape[1] == 1
        operands = Operands(hidden_md, weight_vd, bias_v, targets_mk.contiguous(), head)
        slopes_md = torch.empty_like(hidden_md, memory_format=torch.contiguous_format) if at_once else None
        with without_autocast(hidden_md.device), gpu.on(hidden_md.device):
            scores = _scores(operands, wanted, slopes_md)
        ctx.set_materialize_grads(False)
        ctx.head, ctx.chunk_bytes = head, wanted.chunk_bytes
        again = (hidden_md, weight_vd, bias_v, operands.targets_mk, scores.peak_m, scores.log_total_m, scores.entropy_m)
        ctx.save_for_backward(slopes_md, *(again if wanted.entropy or not at_once else ()))
        ctx.mark_non_differentiable(scores.top1_m)
        return scores.logprobs_mk, scores.entropy_m, scores.top1_m

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_logprobs_mk: Tensor | None, d_entropy_m: Tensor | None, _d_top1: None
    ) -> tuple[Tensor | None, ...]:
        slopes_md, *again = ctx.saved_tensors
        grads: Gradients = (None, None, None)
        if slopes_md is not None and d_entropy_m is None:
            if d_logprobs_mk is not None:
                grads = ((slopes_md * (d_logprobs_mk * ctx.head.slope)).to(slopes_md.dtype), None, None)
        elif d_logprobs_mk is not None or d_entropy_m is not None:
            hidden_md, weight_vd, bias_v, targets_mk, peak_m, log_total_m, entropy_m = again
            operands = Operands(hidden_md, weight_vd, bias_v, targets_mk, ctx.head)
            scores = Scores(
                d_logprobs_mk if d_logprobs_mk is not None else torch.zeros_like(targets_mk, dtype=torch.float32),
                peak_m, log_total_m, entropy_m, targets_mk,
            )  # fmt: skip
            with without_autocast(hidden_md.device), gpu.on(hidden_md.device):
                grads = _gradients(operands, scores, d_entropy_m, ctx.chunk_bytes, ctx.needs_input_grad[:3])
        return (*grads, None, None, None)


def _scores(operands: Operands, wanted: _Request, slopes_md: Tensor | None) -> Scores:
    """Scores from one chunk of rows after the other; into `slopes_md`, d logprob / d hidden but for `Head.slope`.

    Chunks are the same with and without slopes: libraries may multiply other numbers of rows in another order.
    """
    hidden, weight, bias = operands.hidden_md, operands.weight_vd, operands.bias_v
    rows, vocabulary, half = hidden.shape[0], weight.shape[0], hidden.dtype != torch.float32
    scores = Scores.empty(operands, wanted.entropy, wanted.top1)
    most = max(1, wanted.chunk_bytes // (vocabulary * (4 + hidden.element_size() * half)))
    size = max(1, -(-rows // -(-rows // most))) if rows else 1
    narrow = hidden.new_empty((min(size, rows), vocabulary)) if half and slopes_md is not None else None
    for start in range(0, rows, size):
        chunk = slice(start, min(start + size, rows))
        linear = wide_linear(hidden[chunk], weight, bias)
        row_scores(linear, operands, scores, chunk)
        if slopes_md is not None:
            gradient = linear if narrow is None else narrow[: chunk.stop - chunk.start]
            row_gradients(linear, operands, scores, chunk, gradient)
            torch.mm(gradient, weight, out=slopes_md[chunk])
            del gradient
        del linear  # else two chunks are there at once
    return scores


def _gradients(
    operands: Operands, scores: Scores, d_entropy_m: Tensor | None, chunk_bytes: int, wanted: tuple[bool, bool, bool]
) -> Gradients:
    """Gradients for hidden, weight and bias where wanted, from a chunk of tiles after the other.

    `scores.logprobs_mk` holds the incoming gradient. It is brought to at most 1 first, so that half precision loses no
    small gradient to a loss averaged over many tokens, and the results are brought back.
    """
    hidden, weight = operands.hidden_md, operands.weight_vd
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    needs_hidden, needs_weight, needs_bias = wanted
    if rows == 0:
        return (
            torch.zeros_like(hidden) if needs_hidden else None,
            torch.zeros_like(weight) if needs_weight else None,
            None if not needs_bias or operands.bias_v is None else torch.zeros_like(operands.bias_v),
        )
    unit, d_logprobs, d_entropy = _normalised(scores.logprobs_mk, d_entropy_m)
    slope = operands.head.slope
    incoming = scores._replace(logprobs_mk=d_logprobs)
    d_hidden = _Sum(hidden) if needs_hidden else None
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs_weight else None
    d_bias = hidden.new_zeros(vocabulary, dtype=torch.float32) if needs_bias else None
    height, width = _chunk_shape(rows, vocabulary, chunk_bytes // hidden.element_size())
    buffer = hidden.new_empty(height * width)
    for first in range(0, vocabulary, width):
        columns = slice(first, min(first + width, vocabulary))
        part = None if d_weight is None else _Sum(weight[columns])
        for start in range(0, rows, height):
            chunk = slice(start, min(start + height, rows))
            tiles = buffer[: (chunk.stop - start) * (columns.stop - first)].view(-1, columns.stop - first)
            gradient_tiles(operands, incoming, d_entropy, chunk, columns, tiles)
            if d_hidden is not None:
                d_hidden.add(tiles, weight[columns], chunk)
            if part is not None:
                part.add(tiles.t(), hidden[chunk], slice(None))
            if d_bias is not None:
                d_bias[columns] += tiles.sum(0, dtype=torch.float32)
        if d_weight is not None and part is not None:
            d_weight[columns] = part.result(unit * slope)
    return (
        None if d_hidden is None else d_hidden.result(unit * slope),
        d_weight,
        None if d_bias is None else (d_bias * (unit * slope)).to(weight.dtype),
    )


def _normalised(d_logprobs_mk: Tensor, d_entropy_m: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The largest incoming gradient (1 where all are 0), and the gradients divided by it; without a synchronisation."""
    unit = d_logprobs_mk.abs().amax()
    if d_entropy_m is not None:
        unit = torch.maximum(unit, d_entropy_m.abs().amax())
    unit = torch.where(unit == 0, torch.ones_like(unit), unit)
    d_entropy = None if d_entropy_m is None else (d_entropy_m / unit).contiguous()
    return unit, (d_logprobs_mk / unit).contiguous(), d_entropy


def _chunk_shape(rows: int, vocabulary: int, elements: int) -> tuple[int, int]:
    """Rows and columns of a chunk of at most `elements`: all rows if columns enough remain, at least one row."""
    width = max(elements // rows, _LEAST_COLUMNS)
    width = min(width - width % 16, vocabulary)  # keeps each chunk's slice of the weight aligned for the products
    return max(1, min(rows, elements // width)), width


class _Sum:
    """Sum of matrix products into a tensor shaped like `like`, in float32 where there is more than one of them."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._parts: dict[tuple[int | None, int | None], Tensor] = {}

    def add(self, left: Tensor, right: Tensor, rows: slice) -> None:
        """Add left @ right to `rows`; the same slices come again and again, and do not overlap."""
        key = (rows.start, rows.stop)
        if left.dtype == torch.float32:
            self._parts[key] = self._parts[key].addmm_(left, right) if key in self._parts else torch.mm(left, right)
        elif multiplies_into_float32(left.device, left.dtype):
            if key in self._parts:
                self._parts[key] = torch.addmm(self._parts[key], left, right, out_dtype=torch.float32)
            else:
                self._parts[key] = torch.mm(left, right, out_dtype=torch.float32)
        else:
            product = left.float() @ right.float()
            self._parts[key] = self._parts[key].add_(product) if key in self._parts else product

    def result(self, factor: Tensor) -> Tensor:
        """The sum times `factor`, in the dtype of `like`."""
        result = torch.empty_like(self._like, memory_format=torch.contiguous_format)
        for (start, stop), part in self._parts.items():
            result[start:stop] = part.mul_(factor)
        return result
