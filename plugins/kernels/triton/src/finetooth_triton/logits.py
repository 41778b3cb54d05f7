"""The functions of `finetooth_kernels.logits` in Triton kernels: one pass over the logits where they lie."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from finetooth_kernels.logits import RowKernels
from torch import Tensor

from finetooth_triton import gpu
from finetooth_triton.launch import ROW_COLUMNS, ROW_WARPS

__all__ = ["ROWS", "entropy_from_logits_triton", "selected", "selected_gradient"]


class _Rows(NamedTuple):
    """Rows that two strides reach: logits[at] with its leading dimensions seen as (outer, inner)."""

    at: tuple[int, ...]
    inner: int
    stride_outer: int
    stride_inner: int


def entropy_from_logits_triton(logits: Tensor) -> Tensor:
    """See `finetooth_kernels.logits.entropy_from_logits`; arguments are taken as checked."""
    entropy = torch.empty(logits.shape[:-1], dtype=torch.float32, device=logits.device)
    _statistics(logits, None, entropy, None)
    return entropy


def selected(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (..., K) and, (...) each, the largest logit and the log of sum(exp(logit - largest))."""
    logprobs = torch.empty(index.shape, dtype=torch.float32, device=logits.device)
    peak, log_total = _statistics(logits, index.contiguous(), None, logprobs)
    return logprobs, peak, log_total


def _statistics(
    logits: Tensor, index: Tensor | None, entropy: Tensor | None, logprobs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Fill what is given; index, entropy and logprobs are contiguous."""
    from finetooth_triton.row_kernels import row_statistics_kernel

    gpu.check_runs("logits", logits)
    peak, log_total = torch.empty((2, *logits.shape[:-1]), dtype=torch.float32, device=logits.device)
    none = torch.empty(0, dtype=torch.int64, device=logits.device)
    with gpu.on(logits.device):
        for rows in _reachable(logits):
            at, some = rows.at, peak[rows.at]
            row_statistics_kernel[(some.numel(),)](
                logits[at], none if index is None else index[at], some, log_total[at],
                some if entropy is None else entropy[at], some, some if logprobs is None else logprobs[at],
                WITH_ENTROPY=entropy is not None, WITH_TOP1=False, K=0 if index is None else index.shape[-1],
                **_shared(logits, rows),
            )  # fmt: skip
    return peak, log_total


def selected_gradient(logits: Tensor, index: Tensor, peak: Tensor, log_total: Tensor, d_logprobs: Tensor) -> Tensor:
    """Gradient with respect to the logits, in their dtype; contiguous whatever the strides of the logits."""
    from finetooth_triton.row_kernels import row_gradient_kernel

    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    index, d_logprobs = index.contiguous(), d_logprobs.contiguous()
    with gpu.on(logits.device):
        for rows in _reachable(logits):
            at = rows.at
            row_gradient_kernel[(peak[at].numel(), -(-logits.shape[-1] // ROW_COLUMNS))](
                logits[at], gradient[at], index[at], peak[at], log_total[at], d_logprobs[at],
                K=index.shape[-1], stride_gm=logits.shape[-1], **_shared(logits, rows),
            )  # fmt: skip
    return gradient


def _shared(logits: Tensor, rows: _Rows) -> dict[str, object]:
    return {
        "V": logits.shape[-1], "rows_inner": rows.inner,
        "stride_outer": rows.stride_outer, "stride_inner": rows.stride_inner, "stride_v": logits.stride(-1),
        "inner": 1.0, "outer": 1.0, "HAS_SOFTCAP": False, "COLUMNS": ROW_COLUMNS, "num_warps": ROW_WARPS,
    }  # fmt: skip


def _reachable(logits: Tensor) -> Iterator[_Rows]:
    """Cut the rows into parts of two strides: one part, but for logits with three or more unruly leading dimensions."""
    if logits.numel() == 0:
        return
    groups: list[tuple[int, int]] = []  # size and stride of runs of dimensions that one stride covers
    for size, stride in zip(logits.shape[:-1], logits.stride()[:-1], strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    if len(groups) <= 2:
        (_, stride_outer), (inner, stride_inner) = [*[(1, 0)] * (2 - len(groups)), *groups]
        yield _Rows((), inner, stride_outer, stride_inner)
        return
    for first in range(logits.shape[0]):
        for rows in _reachable(logits[first]):
            yield rows._replace(at=(first, *rows.at))


@functools.cache
def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels run on the device and take the dtype."""
    return gpu.available(device, dtype).available


ROWS = RowKernels(
    lambda logits: has_kernels(logits.device, logits.dtype), entropy_from_logits_triton, selected, selected_gradient
)
"""What operations of `finetooth_kernels` are given."""
