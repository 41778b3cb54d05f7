"""The head applied chunk by chunk: how many rows at a time, in which buffers, and how logits come from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetooth_kernels.compiled import NOTHING, Compiled
from finetooth_kernels.contract import result_dtype
from finetooth_kernels.memory import new_empty
from finetooth_kernels.mm import mm, sums_wide
from finetooth_kernels.sums import add_, scaled

Factors = tuple[Tensor, Tensor]
"""Rows and the weight that they are multiplied with, (M, D) and (V, D)."""

_CPU_BLOCK_BYTES = 2 * 2**20
"""Scratch per block of rows on a CPU, so that a block stays in its caches. Accelerators take larger blocks, since there
the launches would dominate."""


@dataclass(frozen=True)
class Head:
    """The head's operations on the linear layer's output; see `linear_logprob` for the order."""

    scale: float
    softcap: float | None
    temperature: float

    @property
    def slope(self) -> float:
        """Derivative of a logit with respect to the linear output, but for the softcap's damping."""
        return self.scale / self.temperature

    def logits_(self, linear: Tensor) -> Tensor:
        """Turn the linear layer's output into logits, in place."""
        if self.softcap is not None:
            linear.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)
        elif self.slope != 1.0:
            linear.mul_(self.slope)
        return linear

    def damping(self, logits: Tensor, space: Workspace) -> Tensor | None:
        """The softcap's own derivative, 1 - tanh(x / softcap)^2, from the logits; None without a softcap."""
        if self.softcap is None:
            return None
        tanh = torch.mul(logits, self.temperature / self.softcap, out=space.damping(logits.shape[0]))
        return tanh.square_().neg_().add_(1.0)


@dataclass(frozen=True)
class Sizes:
    """Rows per chunk (one matrix product) and per block (element-wise work on float32)."""

    chunk: int
    block: int

    @staticmethod
    def within(
        chunk_bytes: int, vocabulary: int, dtype: torch.dtype, device: torch.device, linear: torch.dtype | None = None
    ) -> Sizes:
        """Sizes that keep logits plus scratch (up to three blocks) within `chunk_bytes`, at least one row each.

        Args:
            dtype: of the head's weight.
            linear: of its output; None: the same.
        """
        work = result_dtype(dtype)
        row_bytes = vocabulary * work.itemsize
        block_bytes = chunk_bytes // 8 if device.type != "cpu" else min(_CPU_BLOCK_BYTES, chunk_bytes // 8)
        block = max(1, block_bytes // row_bytes)
        chunk = chunk_bytes // row_bytes
        # Half-precision logits fill half of chunk_bytes, which leaves room; full precision has to make it, also for the
        # rounded gradients of a block.
        full, rounds = (linear or dtype) == work, dtype != work
        return Sizes(max(1, chunk - (2 + rounds) * block if full else chunk), block)

    def chunks(self, rows: int) -> Iterator[slice]:
        """Cut `rows` into chunks of nearly equal size: a short last one would make a slow matrix product."""
        count = max(1, -(-rows // self.chunk))
        size = max(1, -(-rows // count))
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))


def linear_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None, compiled: Compiled = NOTHING) -> torch.dtype:
    """The type of the linear layer's output: float32 where that is as fast, since a logit of 20 that is rounded to
    bfloat16 is off by up to 0.06; else that of the inputs."""
    wide = sums_wide(hidden, weight, *(() if bias is None else (bias,)), compiled=compiled)
    return result_dtype(hidden.dtype) if wide else hidden.dtype


class Workspace:
    """The one buffer of logits and the scratch that all chunks of a pass reuse; hidden (M, D), weight (V, D).

    Args:
        added: (M, R) and (V, R), whose product is added to that of hidden and weight.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes, compiled: Compiled = NOTHING,
        added: Factors | None = None,
    ) -> None:  # fmt: skip
        self.compiled = compiled
        self.hidden, self.weight, self.bias, self.sizes = hidden, weight, bias, sizes
        self.factors: tuple[Factors, ...] = ((hidden, weight), *(() if added is None else (added,)))
        longest = max((rows.stop - rows.start for rows in sizes.chunks(hidden.shape[0])), default=0)
        vocabulary, work = weight.shape[0], result_dtype(hidden.dtype)
        block = min(sizes.block, longest)
        self._linear = new_empty(hidden, (longest, vocabulary), linear_dtype(hidden, weight, bias, compiled))
        self._narrow = self._linear.view(hidden.dtype)[:, :vocabulary]  # the beginnings of its rows
        self._scratch = hidden.new_empty((block, vocabulary), dtype=work)
        self._work = None if self._linear.dtype == work else torch.empty_like(self._scratch)
        self._damping: Tensor | None = None

    def linear(self, rows: slice) -> Tensor:
        """The linear layer's output for `rows`, (rows, V), see `linear_dtype`; valid until the next call."""
        out = self._linear[: rows.stop - rows.start]
        more = next(((low[rows], b.t()) for low, b in self.factors[1:]), None)
        if out.dtype != self.hidden.dtype or more is not None:
            return mm(self.hidden[rows], self.weight.t(), more=more, bias_o=self.bias, out=out, compiled=self.compiled)
        if self.bias is None:
            return torch.mm(self.hidden[rows], self.weight.t(), out=out)
        return torch.addmm(self.bias, self.hidden[rows], self.weight.t(), out=out)

    def gradient(self, rows: int) -> Tensor:
        """(rows, V) in the dtype of the inputs: where gradients of a chunk's linear output take its place."""
        return self._narrow[:rows]

    def keep_gradient(self, chunk: slice, block: slice, gradient: Tensor) -> None:
        """Put that of one block there."""
        if gradient.dtype == self._linear.dtype != self._narrow.dtype:
            gradient = gradient.to(self._narrow.dtype)  # it may stand where it is to be written
        self._narrow[block.start - chunk.start : block.stop - chunk.start] = gradient

    def blocks(self, rows: slice) -> Iterator[tuple[slice, Tensor]]:
        """The blocks of a chunk: which of the M rows they are, and their view of the latest `linear` output."""
        for start in range(rows.start, rows.stop, self.sizes.block):
            block = slice(start, min(start + self.sizes.block, rows.stop))
            yield block, self._linear[block.start - rows.start : block.stop - rows.start]

    def in_full_precision(self, linear: Tensor) -> Tensor:
        """A block of `linear` to work on in place: itself, or a copy where it is in half precision."""
        return linear if self._work is None else self._work[: linear.shape[0]].copy_(linear)

    def scratch(self, rows: int) -> Tensor:
        """A (rows, V) block in full precision with arbitrary content."""
        return self._scratch[:rows]

    def damping(self, rows: int) -> Tensor:
        """Another such block, made when first asked for: only a softcap needs it."""
        if self._damping is None:
            self._damping = torch.empty_like(self._scratch)
        return self._damping[:rows]


class FactorGradients:
    """Gradients of the products of a `Workspace`, a chunk at a time; None where none is wanted.

    Args:
        wanted: of each product, those of its rows and of its weight.

    Attributes:
        rows: d rows = d linear W.
        weights: d W = (d linear)^T rows.
    """

    def __init__(self, space: Workspace, wanted: Sequence[tuple[bool, bool]]) -> None:
        self._space = space
        both = list(zip(space.factors, wanted, strict=False))
        self.rows = [rows.new_empty(rows.shape) if want else None for (rows, _), (want, _) in both]
        self.weights = [WeightGradient(weight, space.compiled) if want else None for (_, weight), (_, want) in both]

    def add(self, chunk: slice, d_linear_cv: Tensor, shares_m1: Tensor | None = None) -> None:
        """Add a chunk's part.

        Args:
            shares_m1: what the weight's gradient takes of each row; None: 1.
        """
        compiled = self._space.compiled
        for (rows, weight), d_rows, d_weight in zip(self._space.factors, self.rows, self.weights, strict=True):
            if d_rows is not None:
                mm(d_linear_cv, weight, out=d_rows[chunk], compiled=compiled)
            if d_weight is not None:
                read = rows[chunk] if shares_m1 is None else (rows[chunk] * shares_m1[chunk]).to(rows.dtype)
                d_weight.add(d_linear_cv, read)


class WeightGradient:
    """Sum over chunks of (d linear)^T hidden, in float32 (or float64) even where each product is in half precision."""

    def __init__(self, weight: Tensor, compiled: Compiled = NOTHING) -> None:
        self._compiled = compiled
        self._like, self._work = weight, result_dtype(weight.dtype)
        self._sum: Tensor | None = None
        self._part: Tensor | None = None

    def add(self, d_linear_cv: Tensor, hidden_cd: Tensor) -> None:
        """Add one chunk's part."""
        d_linear_vc = d_linear_cv.t()
        if self._sum is None:
            self._sum = mm(d_linear_vc, hidden_cd, out=new_empty(self._like), compiled=self._compiled)
        elif d_linear_cv.dtype == self._work:
            self._sum.addmm_(d_linear_vc, hidden_cd)
        elif sums_wide(d_linear_vc, hidden_cd, compiled=self._compiled):
            self._sum = scaled(self._sum, self._work, compiled=self._compiled)
            mm(d_linear_vc, hidden_cd, base_no=self._sum, out=self._sum, compiled=self._compiled)
        else:
            if self._part is None:
                self._sum, self._part = scaled(self._sum, self._work, compiled=self._compiled), self._sum
            add_(self._sum, torch.mm(d_linear_vc, hidden_cd, out=self._part), self._compiled)

    def total(self) -> Tensor:
        """The sum, as precise as it is; zeros where there was no row."""
        return torch.zeros_like(self._like) if self._sum is None else self._sum

    def result(self) -> Tensor:
        """The sum in the weight's dtype."""
        return scaled(self.total(), self._like.dtype, compiled=self._compiled)
