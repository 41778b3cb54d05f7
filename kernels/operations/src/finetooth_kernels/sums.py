"""Numbers of one precision rounded to, or summed in, another: in one pass, without a copy in between.

Compiled kernels do it where they can; elsewhere torch's operations, with the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetooth_kernels.compiled import NOTHING, Compiled, Library
from finetooth_kernels.contract import result_dtype
from finetooth_kernels.memory import LARGE, new_empty

__all__ = ["accumulate", "add_", "scaled"]


def accumulate(total: Tensor | None, part: Tensor, dtype: torch.dtype, *, compiled: Compiled = NOTHING) -> Tensor:
    """total + part, in `total`; without a graph.

    Args:
        total: in `dtype`; None: there is none yet, and the result is `part` in that dtype (itself, if it is that).
        part: in any precision.
        dtype: of the sum, usually wider than that of its parts.
    """
    return scaled(part, dtype, compiled=compiled) if total is None else add_(total, part, compiled)


def add_(total: Tensor, part: Tensor, compiled: Compiled = NOTHING) -> Tensor:
    """total += part, in place and in the precision of `total`; without a graph."""
    library = _library(compiled, part, total)
    if library is None:
        return total.add_(part)
    library.scaled(part, total, 1.0, add=True)
    return total


def scaled(x: Tensor, dtype: torch.dtype, factor: Tensor | None = None, compiled: Compiled = NOTHING) -> Tensor:
    """x * factor in another precision, rounded once; `x` itself where nothing changes. Without a graph.

    Args:
        factor: () a number in full precision; None: 1.
    """
    if factor is None and x.dtype == dtype:
        return x
    size = x.numel() * dtype.itemsize
    out = new_empty(x, dtype=dtype) if size >= LARGE else torch.empty_like(x, dtype=dtype)
    library = _library(compiled, x, out)
    if library is not None:
        library.scaled(x, out, 1.0 if factor is None else float(factor), add=False)
        return out
    return out.copy_(x) if factor is None else torch.mul(x.to(result_dtype(x.dtype)), factor, out=out)


def _library(compiled: Compiled, x: Tensor, y: Tensor) -> Library | None:
    """Whether the compiled kernel takes these two, which may differ in dtype."""
    if x.shape != y.shape or compiled.library_for(y) is None:
        return None
    library: Library | None = compiled.library_for(x)
    return library
