"""The contract of every implementation of ``linear_logprob``: its result, and the refused arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_CHUNK_BYTES = 128 * 2**20
"""Enough rows per GEMM to be efficient (682 at a vocabulary of 49,152), little compared with any model's weights."""

MOST_CHUNK_BYTES = 2**30
"""720 rows at a vocabulary of 248,320, whose weight each chunk reads."""


def chunk_bytes_on(device: str, memory: int) -> int:
    """Largest size of the logits in memory at once: on a GPU an eightieth of its bytes, between the default and 1
    GiB."""
    return DEFAULT_CHUNK_BYTES if device != "cuda" else min(MOST_CHUNK_BYTES, max(DEFAULT_CHUNK_BYTES, memory // 80))


SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LinearLogprob(NamedTuple):
    """Per-target log-probabilities and, on request, the entropy of their distribution and its likeliest id.

    Numbers are float32, or float64 where ``hidden`` is float64. Rows that the mask leaves out have 0 in both and -1 as
    their id.
    """

    logprobs: Tensor
    """(N,) or (N, K), the shape of the targets; nats."""
    entropy: Tensor | None
    """(N,), nats; None unless it was asked for."""
    top1: Tensor | None = None
    """(N,) int64, the id of the largest logit, the lowest where several are equal; None unless it was asked for. It
    comes from the logits as the implementation rounds them, so that near-ties may fall differently."""


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""With respect to hidden, weight and bias; None where none is wanted."""


class Availability(NamedTuple):
    """Whether an implementation can run on a device, and why (or why not)."""

    available: bool
    reason: str


def refused_dtype(dtype: torch.dtype | None) -> Availability | None:
    """The answer for a dtype that no implementation takes; None for a dtype that is fine."""
    if dtype is None or dtype in SUPPORTED_DTYPES:
        return None
    names = ", ".join(str(known).removeprefix("torch.") for known in SUPPORTED_DTYPES)
    return Availability(False, f"{str(dtype).removeprefix('torch.')} is not supported, only {names}")


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of the log-sum-exp and of the results for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_arguments(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    bias_v: Tensor | None,
    added: tuple[Tensor, Tensor] | None,
    *,
    scale: float,
    softcap: float | None,
    temperature: float,
    expected: Tensor | None,
    chunk_bytes: int,
) -> None:
    """Raise ValueError, in one line naming the argument, for anything but the values of the targets.

    Looks at shapes, dtypes and devices only, so it costs no device synchronisation. See `check_targets` for the values.
    """
    for name, tensor in (("hidden_nd", hidden_nd), ("weight_vd", weight_vd)):
        if tensor.dim() != 2:
            raise ValueError(f"{name} must have 2 dimensions, got shape {tuple(tensor.shape)}")
    rows, width = hidden_nd.shape
    vocabulary = weight_vd.shape[0]
    if vocabulary == 0:
        raise ValueError("weight_vd must hold at least one vocabulary row, got shape " + str(tuple(weight_vd.shape)))
    if weight_vd.shape[1] != width:
        raise ValueError(f"weight_vd has width {weight_vd.shape[1]}, but hidden_nd has width {width}")
    if bias_v is not None and bias_v.shape != (vocabulary,):
        raise ValueError(f"bias_v must have shape ({vocabulary},), got {tuple(bias_v.shape)}")
    if targets.dim() not in (1, 2) or targets.shape[0] != rows or (targets.dim() == 2 and targets.shape[1] == 0):
        raise ValueError(f"targets must have shape ({rows},) or ({rows}, K) with K >= 1, got {tuple(targets.shape)}")
    if mask is not None and mask.shape != (rows,):
        raise ValueError(f"mask must have shape ({rows},), got {tuple(mask.shape)}")
    if expected is not None and expected.shape != targets.shape:
        raise ValueError(
            f"expected must have the shape of targets, {tuple(targets.shape)}, got {tuple(expected.shape)}"
        )
    optional = {"bias_v": bias_v}
    if added is not None:
        optional |= {"added[0]": added[0], "added[1]": added[1]}
        shapes = [tuple(factor.shape) for factor in added]
        if added[0].dim() != 2 or shapes != [(rows, shapes[0][1]), (vocabulary, shapes[0][1])]:
            raise ValueError(f"added must have shapes ({rows}, R) and ({vocabulary}, R), got {shapes}")
    _check_types(hidden_nd, weight_vd, targets, mask, optional, expected)
    _check_numbers(scale, softcap, temperature, chunk_bytes)


def _check_types(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    optional: Mapping[str, Tensor | None],
    expected: Tensor | None,
) -> None:
    if hidden_nd.dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        raise ValueError(f"hidden_nd has unsupported dtype {hidden_nd.dtype}; supported are {names}")
    for name, tensor in {"weight_vd": weight_vd, **optional}.items():
        if tensor is not None and tensor.dtype != hidden_nd.dtype:
            raise ValueError(f"{name} has dtype {tensor.dtype}, but hidden_nd has {hidden_nd.dtype}; cast one of them")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64, got {targets.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask.dtype}")
    if expected is not None and not expected.is_floating_point():
        raise ValueError(f"expected must be of floating point, got {expected.dtype}")
    others = {"weight_vd": weight_vd, **optional, "targets": targets, "mask": mask, "expected": expected}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != hidden_nd.device:
            raise ValueError(f"{name} is on {tensor.device}, but hidden_nd is on {hidden_nd.device}")


def _check_numbers(scale: float, softcap: float | None, temperature: float, chunk_bytes: int) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive and finite (or None for no cap), got {softcap}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")


def extremes(x: Tensor) -> tuple[int, int]:
    """The least and the largest of whole numbers, in one copy from a device."""
    low, high = torch.stack(torch.aminmax(x)).cpu()
    return int(low), int(high)


_IDS_CHECKED: ContextVar[bool] = ContextVar("ids_checked", default=False)


@contextmanager
def ids_checked() -> Iterator[None]:
    """Inside the `with` block, operations take ids as they are: the caller has seen that all are in the vocabulary. To
    look at them an accelerator must wait."""
    token = _IDS_CHECKED.set(True)
    try:
        yield
    finally:
        _IDS_CHECKED.reset(token)


def are_ids_checked() -> bool:
    """Whether this is inside `ids_checked`."""
    return _IDS_CHECKED.get()


def check_targets(targets_mk: Tensor, rows_m: Tensor | None, vocabulary: int) -> None:
    """Raise ValueError, naming the row, unless every id in `targets_mk` is in [0, vocabulary).

    `targets_mk` holds the rows that count only; `rows_m` has their indices among the caller's rows (None: all of them).
    One reduction and, on an accelerator, one synchronisation: there an id out of range would kill the process's device
    context instead of raising. Inside `ids_checked` it does not look.
    """
    if targets_mk.numel() == 0 or are_ids_checked():
        return
    low, high = extremes(targets_mk)
    if low >= 0 and high < vocabulary:
        return
    wrong_mk = (targets_mk < 0) | (targets_mk >= vocabulary)
    at, column = (int(index) for index in wrong_mk.nonzero()[0])
    row = at if rows_m is None else int(rows_m[at])
    raise ValueError(
        f"targets holds id {int(targets_mk[at, column])} in row {row}, outside the vocabulary of {vocabulary}; "
        "correct it, or mask the row out"
    )
