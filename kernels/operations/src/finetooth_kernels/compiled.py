"""The interface between operations and compiled kernels, which are optional.

An operation is written in torch. If it is given compiled kernels that can read a tensor, they do the work. The provider
of the operation chooses the kernels; the provider `torch` gives none (`NOTHING`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["NOTHING", "Compiled", "Library"]

Factors = tuple[Tensor, Tensor]


class Library(Protocol):
    """Kernels that take tensors which fit together; the operations see to that, they check nothing.

    A result lies in new memory unless it is said where to write it.
    """

    def rms_norm(
        self, x_nd: Tensor, weight_d: Tensor, eps: float, inverse_n: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Normalised rows in the weight's dtype, and the inverse roots, (..., 1) float32."""
        ...

    def rms_norm_backward(
        self, grad_nd: Tensor, x_nd: Tensor, weight_d: Tensor, inverse_n: Tensor, beside_nd: Tensor | None = None
    ) -> Tensor:
        """The gradient of `x_nd`, plus `beside_nd`."""
        ...

    def rms_norm_weight_backward(self, grad_nd: Tensor, x_nd: Tensor, inverse_n: Tensor) -> Tensor:
        """The gradient of the weight, (D,)."""
        ...

    def gated(self, gate_up_nf: Tensor, activation: str) -> Tensor:
        """(N, 2 F) to (N, F)."""
        ...

    def gated_backward(self, grad_nf: Tensor, gate_up_nf: Tensor, activation: str) -> Tensor:
        """The gradient of `gate_up_nf`."""
        ...

    def rotate(self, x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, *, back: bool, out: Tensor) -> Tensor:
        """The first heads turned, the others as they are, in `out`."""
        ...

    def dropped(self, x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
        """See `finetooth_kernels.dropout.keyed_dropout`."""
        ...

    def head_rows(
        self, logits_nv: Tensor, targets_nk: Tensor, logprobs_nk: Tensor, log_normalizer_n1: Tensor,
        entropy_n: Tensor | None, top1_n: Tensor | None, slope: float, *, gradient: torch.dtype | None,
    ) -> None:  # fmt: skip
        """Scores of rows of logits, written into the tensors that are given."""
        ...

    def multiplies_fast(self, dtype: torch.dtype) -> bool:
        """Whether `mm` is faster than torch's here."""
        ...

    def turns(self, dtype: torch.dtype) -> bool:
        """Whether `mm` takes left factors in columns."""
        ...

    def mm(
        self, left_nk: Tensor, right_ko: Tensor, *, more: Factors | None = None, bias_o: Tensor | None = None,
        base_no: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """left right + more[0] more[1] + bias + base, summed in float32 and rounded once."""
        ...

    def scaled(self, x: Tensor, out: Tensor, factor: float, *, add: bool) -> None:
        """Write x * factor to `out`, or add it."""
        ...


class _LibraryFor(Protocol):
    def __call__(self, *tensors: Tensor, strided: bool = False) -> Any:
        """The kernels if they can read all these tensors, else None; `strided`: in any strides."""
        ...


class _Readable(Protocol):
    def __call__(self, *tensors: Tensor, strided: bool = False) -> bool: ...


class Compiled(NamedTuple):
    """Where an operation finds kernels.

    Attributes:
        library_for: the `Library`, if it can read all of some tensors; None otherwise.
        readable: whether it could, were it there.
    """

    library_for: _LibraryFor
    readable: _Readable


def _none(*tensors: Tensor, strided: bool = False) -> None:
    return None


def _never(*tensors: Tensor, strided: bool = False) -> bool:
    return False


NOTHING = Compiled(_none, _never)
"""No compiled kernels: torch's operations compute."""
