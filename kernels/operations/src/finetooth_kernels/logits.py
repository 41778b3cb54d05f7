"""Entropy, and log-probabilities of chosen ids, of logits that are in memory already, without a copy.

A caller that has the output head uses `finetooth_kernels.linear_logprob`, which needs no logits. All functions take any
strides (transposed, thinned out, expanded) and hold a few rows in full precision at a time. Torch computes them by
blocks. A provider may give `RowKernels`, which read the logits once in place, or compiled kernels, which compute
log-probabilities of contiguous logits while no graph is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetooth_kernels.autograd import once_differentiable
from finetooth_kernels.compiled import NOTHING, Compiled, Library
from finetooth_kernels.contract import SUPPORTED_DTYPES, are_ids_checked, extremes, result_dtype

__all__ = [
    "LogitsStatistics",
    "RowKernels",
    "entropy_from_logits",
    "logits_statistics",
    "most_likely",
    "selective_log_softmax",
]

_LOWEST_LOG_PROBABILITY = -1000.0
"""Stands in for -inf (an id switched off), where 0 * inf is NaN."""
_BLOCK_BYTES = 8 * 2**20
"""Bytes of logits in full precision at a time, in `selective_log_softmax`."""


class RowKernels(NamedTuple):
    """Kernels of a device that read rows of logits once.

    Attributes:
        take: whether they take these logits; torch's operations compute the others.
        entropy: of detached logits, (...) float32.
        selected: logits and index (..., K) to log-probabilities (..., K), and (...) each, the largest logit and the log
            of sum(exp(logit - largest)).
        gradient: with respect to the logits, of those, the index, `selected`'s two numbers and the incoming gradient.
    """

    take: Callable[[Tensor], bool]
    entropy: Callable[[Tensor], Tensor]
    selected: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class LogitsStatistics(NamedTuple):
    """Statistics of rows of logits.

    Attributes:
        ids: the chosen ids, or each row's likeliest, (...) int64.
        logprobs: at the ids, in their shape; float32, or float64 for float64 logits.
        entropy: (...), likewise; None unless requested.
    """

    ids: Tensor
    logprobs: Tensor
    entropy: Tensor | None = None


def logits_statistics(
    logits: Tensor, index: Tensor | None = None, *, entropy: bool = False, compiled: Compiled = NOTHING,
    rows: RowKernels | None = None,
) -> LogitsStatistics:  # fmt: skip
    """Log-probabilities of chosen ids, or of the likeliest, and the entropy, of existing logits.

    Args:
        logits: (..., V), any strides; float32, bfloat16, float16 or float64. -inf switches an id off.
        index: (...) or (..., K), int64 ids in [0, V): `selective_log_softmax`, differentiable. None: `most_likely`.
        entropy: whether to return that too (`entropy_from_logits`); no gradient goes through it.
        compiled, rows: kernels that take part of the work.

    Raises:
        ValueError: naming the argument, as those functions do.
    """
    if index is None:
        ids, logprobs = most_likely(logits, compiled=compiled, rows=rows)
    else:
        ids, logprobs = index, selective_log_softmax(logits, index, compiled=compiled, rows=rows)
    return LogitsStatistics(ids, logprobs, entropy_from_logits(logits, rows=rows) if entropy else None)


def entropy_from_logits(logits: Tensor, chunk_size: int = 128, *, rows: RowKernels | None = None) -> Tensor:
    """Entropy -sum(p log p) of p = softmax(logits), in nats; no gradient.

    With m the largest logit, s = sum(exp(x - m)) and t = sum(exp(x - m) (x - m)), it is log s - t / s: both terms are
    at least 0, so large logits cost no precision.

    Args:
        logits: (..., V), any strides; float32, bfloat16, float16 or float64. -inf switches an id off.
        chunk_size: rows in full precision at a time where torch operations do the work; kernels need none.

    Returns:
        (...), float32, or float64 for float64 logits.

    Raises:
        ValueError: naming the argument, for a dtype that is not supported, logits without ids, or `chunk_size` < 1.
    """
    _check_logits(logits)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 row, got {chunk_size}")
    logits = logits.detach()
    if rows is not None and rows.take(logits):
        return rows.entropy(logits)
    entropy = torch.empty(logits.shape[:-1], dtype=result_dtype(logits.dtype), device=logits.device)
    for block in _blocks(logits.shape[:-1], chunk_size):
        x = logits[block].to(entropy.dtype)
        shifted = x - x.amax(-1, keepdim=True)
        exponentials = shifted.exp()
        total = exponentials.sum(-1)
        weighted = exponentials.mul_(shifted.clamp_min_(_LOWEST_LOG_PROBABILITY)).sum(-1)
        entropy[block] = total.log() - weighted / total
    return entropy


def selective_log_softmax(
    logits: Tensor, index: Tensor, *, compiled: Compiled = NOTHING, rows: RowKernels | None = None
) -> Tensor:
    """log_softmax(logits) at the ids in `index`, differentiable in `logits`.

    Keeps two numbers per row and its inputs for the backward pass: d x_j = sum_k g_k ([j = index_k] - p_j).

    Args:
        logits: (..., V), any strides; float32, bfloat16, float16 or float64.
        index: (...) or (..., K), int64 ids in [0, V).

    Returns:
        The shape of `index`, float32, or float64 for float64 logits. The gradient is in the dtype of the logits.

    Raises:
        ValueError: naming the argument, for shapes, dtypes or devices that do not fit, or an id out of range.
    """
    _check_logits(logits)
    _check_index(index, logits)
    single = index.dim() == logits.dim() - 1
    library = None if torch.is_grad_enabled() else compiled.library_for(logits)
    if library is not None:
        return _scored(library, logits, index.contiguous())
    result: Tensor = _selected_at(logits, index.unsqueeze(-1) if single else index, rows)
    return result.squeeze(-1) if single else result


def most_likely(
    logits: Tensor, *, compiled: Compiled = NOTHING, rows: RowKernels | None = None
) -> tuple[Tensor, Tensor]:
    """The id with the largest logit, the lowest of equal ones, and its log-probability; no gradient.

    Args:
        logits: (..., V), any strides; float32, bfloat16, float16 or float64.

    Returns:
        (...) int64, and (...) float32, or float64 for float64 logits.

    Raises:
        ValueError: a dtype that is not supported, or logits without ids.
    """
    _check_logits(logits)
    logits = logits.detach()
    library = compiled.library_for(logits)
    if library is None:
        ids = logits.argmax(-1)
        return ids, _selected_at(logits, ids.unsqueeze(-1), rows).squeeze(-1)
    ids = logits.new_empty(logits.shape[:-1], dtype=torch.int64)
    return ids, _scored(library, logits, ids, top1=ids)


def _scored(library: Library, logits: Tensor, index: Tensor, top1: Tensor | None = None) -> Tensor:
    """Log-probabilities at `index`, (...) or (..., K), by the compiled kernel, which first writes `top1`."""
    logits_nv = logits.view(-1, logits.shape[-1])
    logprobs = logits.new_empty(index.shape, dtype=torch.float32)
    index_nk = index.view(len(logits_nv), -1) if len(logits_nv) else index.view(0, 1)
    normalizers_n1 = logits.new_empty((len(logits_nv), 1), dtype=torch.float32)
    library.head_rows(logits_nv, index_nk, logprobs, normalizers_n1, None, top1, 1.0, gradient=None)
    return logprobs


def _check_logits(logits: Tensor) -> None:
    if logits.dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        raise ValueError(f"logits have unsupported dtype {logits.dtype}; supported are {names}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., V) with V >= 1, got {tuple(logits.shape)}")


def _check_index(index: Tensor, logits: Tensor) -> None:
    leading = logits.shape[:-1]
    fits = index.shape == leading or (index.dim() == logits.dim() and index.shape[:-1] == leading and index.shape[-1])
    if not fits:
        raise ValueError(f"index must have shape {tuple(leading)} or that and K >= 1, got {tuple(index.shape)}")
    if index.dtype != torch.int64:
        raise ValueError(f"index must be int64, got {index.dtype}")
    if index.device != logits.device:
        raise ValueError(f"index is on {index.device}, but logits are on {logits.device}")
    if index.numel() == 0 or are_ids_checked():
        return
    low, high = extremes(index)
    if low < 0 or high >= logits.shape[-1]:
        at = tuple(((index < 0) | (index >= logits.shape[-1])).nonzero()[0].tolist())
        raise ValueError(f"index holds id {int(index[at])} at {at}, outside the vocabulary of {logits.shape[-1]}")


def _blocks(leading: torch.Size, rows: int) -> Iterator[tuple[int | slice, ...]]:
    """Cut rows numbered by any leading dimensions into views of at most `rows` rows each."""
    if not leading:
        yield ()
        return
    inner = math.prod(leading[1:])
    if inner > rows:
        for at in range(leading[0]):
            for rest in _blocks(leading[1:], rows):
                yield (at, *rest)
        return
    size = rows // max(1, inner)
    for start in range(0, leading[0], size):
        yield (slice(start, start + size),)


def _selected_at(logits: Tensor, index: Tensor, rows: RowKernels | None) -> Tensor:
    kernels = rows if rows is not None and rows.take(logits) else _TORCH
    return _SelectiveLogSoftmax.apply(logits, index, kernels)  # type: ignore[no-any-return, no-untyped-call]


class _SelectiveLogSoftmax(torch.autograd.Function):
    """index is (..., K)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, kernels: RowKernels) -> Tensor:
        logprobs, peak, log_total = kernels.selected(logits, index)
        ctx.kernels = kernels
        ctx.save_for_backward(logits, index, peak, log_total)
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logprobs: Tensor) -> tuple[Tensor, None, None]:
        return ctx.kernels.gradient(*ctx.saved_tensors, d_logprobs), None, None


def _rows_at_once(logits: Tensor) -> int:
    return max(1, _BLOCK_BYTES // (logits.shape[-1] * result_dtype(logits.dtype).itemsize))


def _selected(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (..., K), the largest logit of each row, and the log of sum(exp(logit - largest)), (..., 1)."""
    work, leading = result_dtype(logits.dtype), logits.shape[:-1]
    logprobs = torch.empty(index.shape, dtype=work, device=logits.device)
    peak, log_total = torch.empty((2, *leading, 1), dtype=work, device=logits.device)
    for block in _blocks(leading, _rows_at_once(logits)):
        x = logits[block].to(work)
        peak[block] = x.amax(-1, keepdim=True)
        taken = x.gather(-1, index[block])
        log_total[block] = (x - peak[block]).exp_().sum(-1, keepdim=True).log()
        logprobs[block] = (taken - peak[block]) - log_total[block]
    return logprobs, peak, log_total


def _selected_gradient(logits: Tensor, index: Tensor, peak: Tensor, log_total: Tensor, d_logprobs: Tensor) -> Tensor:
    gradient = logits.new_empty(logits.shape)
    for block in _blocks(logits.shape[:-1], _rows_at_once(logits)):
        shifted = logits[block].to(peak.dtype) - peak[block]
        part = shifted.sub_(log_total[block]).exp_().mul_(-d_logprobs[block].sum(-1, keepdim=True))
        gradient[block] = part.scatter_add_(-1, index[block], d_logprobs[block])
    return gradient


_TORCH = RowKernels(lambda logits: True, entropy_from_logits, _selected, _selected_gradient)
