"""Linear layers that read the same rows, each with a low-rank addition if it has one, as few matrix products.

    y_i = x W_i^T + b_i + s_i (x A_i^T) B_i^T        (Hu et al., 2021, arXiv:2106.09685, eq. 3)

The W_i stand below each other in one matrix, so one product serves them all, and so do the A_i; the B_i become the
diagonal blocks of one matrix. Backward, with dy the gradients side by side and h = x A^T:

    dx = dy W + (s dy B) A        dA = (s dy B)^T x        dB = s dy^T h        dW = dy^T x

No product W + s B A is ever formed. Kept for backward: h (rank numbers a row), and x unless it can be made again.

With dropout h_i = (m_i x) A_i^T, where each layer has a mask m_i of 0 and 1, and s_i includes what makes up for the
zeros, so that dropping rounds nothing. Backward, with d_i the columns of s dy B that belong to layer i:

    dx = dy W + sum of m_i (d_i A_i)        dA_i = d_i^T (m_i x)

Kept for backward: the words that the masks are made of again, one a row and one a column. With
DoRA (Liu et al., 2024, arXiv:2402.09353, eq. 5) an output is

    y = g * (x W^T + s (x A^T) B^T) + b,    g = m / |W + s B A|

where the lengths |W + s B A| of rows count as constants in backward (section 4.3 of the paper). With p what g
multiplies, the gradient of p is g * dy, and that of m is the sum of dy * p over rows, divided by the lengths. p is kept
too, O numbers a row. What else is kept, or is likely to be by who takes the result, can be cut from an `Arena`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.compiled import NOTHING, Compiled
from finetooth_kernels.contract import result_dtype
from finetooth_kernels.dropout import Dropped
from finetooth_kernels.memory import Arena, cut, new_empty
from finetooth_kernels.mm import mm

__all__ = [
    "Directions", "Masked", "diagonal", "gains", "low_rank_linear", "row_lengths", "torch_directions", "torch_masked",
]  # fmt: skip

Multiply = Callable[..., Tensor]
"""The operation `matmul_rounded_once`, see `finetooth_kernels.mm.mm`."""

Again = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A pure function and the tensors it is called with."""

WIDEST_DIAGONAL = 64
"""Highest rank at which zeros around the diagonal blocks cost less than products of their own."""


PIECE = {"cpu": 1 << 18}
"""Weights of W + s B A that are there at once while rows are measured, by the kind of device."""
LARGE_PIECE = 1 << 24
"""The same on a GPU, where each piece costs three launches."""


class Directions(NamedTuple):
    """DoRA's additions to the products of a group.

    Attributes:
        lengths: W (O, D), A (r, D), B (O, r) and s to (O,), the lengths of the rows of W + s B A, in full precision.
        scaled: p (N, O) and g (O,) in full precision, b (O,) or None, what is added to (N, O) or None, and a dtype, to
            g p + b + what is added, rounded once to the dtype of that, else to the dtype; and p in the dtype. What p
            lay in may be written to.
        backward: dy (N, O), p (N, O) as `scaled` gave it, and g to g dy in the dtype of p, and the sum of dy p over
            rows (O,) in full precision.
    """

    lengths: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    scaled: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, torch.dtype], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def row_lengths(weight_od: Tensor, a_rd: Tensor, b_or: Tensor, scale: float) -> Tensor:
    """(O,), the lengths of the rows of W + s B A in full precision, measured a few rows at a time."""
    wide = result_dtype(weight_od.dtype)
    rows = max(1, PIECE.get(weight_od.device.type, LARGE_PIECE) // max(1, weight_od.shape[1]))
    a, lengths = a_rd.to(wide), []
    for start in range(0, weight_od.shape[0], rows):
        part, of_b = weight_od[start : start + rows].to(wide), b_or[start : start + rows].to(wide)
        lengths.append(torch.linalg.vector_norm(torch.addmm(part, of_b, a, alpha=scale), dim=1))
    return torch.cat(lengths)


def _scaled(
    wide_no: Tensor, gains_o: Tensor, bias_o: Tensor | None, base_no: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    kept_no = wide_no.to(dtype)
    y_no = wide_no * gains_o if kept_no is wide_no else wide_no.mul_(gains_o)
    for added in (bias_o, base_no):
        if added is not None:
            y_no += added
    return y_no.to(dtype if base_no is None else base_no.dtype), kept_no


def _backward(grad_no: Tensor, product_no: Tensor, gains_o: Tensor) -> tuple[Tensor, Tensor]:
    wide = grad_no.to(gains_o.dtype)
    return (wide * gains_o).to(product_no.dtype), (wide * product_no).sum(0)


torch_directions = Directions(row_lengths, _scaled, _backward)
"""Torch's own operations."""


class Masked(NamedTuple):
    """Products with rows of which numbers are dropped: with m x, where m is 0 or 1. The last argument of each makes
    products.

    Attributes:
        narrow: x (N, D), what is dropped of it, and A (r, D), to (m x) A^T (N, r).
        factor: d (N, r), x, and what is dropped of it, to d^T (m x) (r, D).
        rows: d (N, r), A, what is dropped, and (N, D) or None, to m (d A) plus that, which may be written to.
    """

    narrow: Callable[[Tensor, Dropped | None, Tensor, Multiply], Tensor]
    factor: Callable[[Tensor, Tensor, Dropped | None, Multiply], Tensor]
    rows: Callable[[Tensor, Tensor, Dropped | None, Tensor | None, Multiply], Tensor]


def _kept(x_nd: Tensor, of: Dropped | None) -> Tensor:
    return x_nd if of is None else of.drop(x_nd, *of[:4])


def _rows(d_nr: Tensor, a_rd: Tensor, of: Dropped | None, sum_nd: Tensor | None, multiply: Multiply) -> Tensor:
    part = _kept(multiply(d_nr, a_rd), of)
    return part if sum_nd is None else sum_nd.add_(part)


torch_masked = Masked(
    lambda x_nd, of, a_rd, multiply: multiply(_kept(x_nd, of), a_rd.t()),
    lambda d_nr, x_nd, of, multiply: multiply(d_nr.t(), _kept(x_nd, of)),
    _rows,
)
"""By `Dropped.drop`, which writes m x out."""


def low_rank_linear(
    x_nd: Tensor,
    weight_od: Tensor,
    bias_o: Tensor | None,
    sizes: Sequence[int],
    additions: Sequence[tuple[Tensor, Tensor, float] | None],
    trained: Sequence[Tensor | None] = (),
    again: Again | None = None,
    base_no: Tensor | None = None,
    arena: Arena | None = None,
    *,
    passing: bool = False,
    magnitudes: Sequence[Tensor | None] = (),
    dropped: Sequence[Dropped | None] = (),
    multiply: Multiply | None = None,
    compiled: Compiled = NOTHING,
    directions: Directions = torch_directions,
    masked: Masked = torch_masked,
) -> Tensor:
    """All layers of the group.

    Args:
        x_nd: (N, D) rows.
        weight_od: (O, D), the layers' weights below each other; not differentiated.
        bias_o: (O,), theirs likewise.
        sizes: outputs of each layer, O in sum.
        additions: for each layer A (r, D), B (size, r) and the scale, or None.
        trained: the weights (size, D) that `weight_od` holds, for those layers whose weight trains; the gradients go
            to them.
        again: makes `x_nd` once more from tensors that are kept anyway; then `x_nd` itself is not kept.
        base_no: (N, O), tensor to which the outputs are added, of the dtype of `x_nd` or a wider one.
        arena: memory of h and the result.
        passing: the result is not kept, so it is not cut from the arena.
        magnitudes: with DoRA the lengths m (size,) of each layer that has an addition, or None; those of none: `()`.
        dropped: for each layer what A does not read of the rows, or None; if none drops: `()`.
        multiply: makes the products, all but those of blocks of a rank over `WIDEST_DIAGONAL`; None: they are made
            here.
        directions: computes DoRA's additions.
        masked: multiplies rows of which numbers are dropped.

    Returns:
        (N, O), the layers' outputs side by side, in the dtype of `base_no`, else of `x_nd`.
    """
    a = [addition[0] for addition in additions if addition is not None]
    b = [addition[1] for addition in additions if addition is not None]
    scales = tuple(addition[2] if addition is not None else None for addition in additions)
    drops = tuple(of for of, s in zip(dropped or [None] * len(scales), scales, strict=True) if s is not None)
    words = [word for of in drops if of is not None for word in (of.rows_n, of.columns_d)]
    weights = [weight for weight in trained if weight is not None]
    places = tuple(i for i, weight in enumerate(trained) if weight is not None)
    of_lengths = [magnitude for magnitude in magnitudes if magnitude is not None]
    measured = tuple(i for i, magnitude in enumerate(magnitudes) if magnitude is not None)
    make, sources = (None, ()) if again is None else again
    rest = (*a, *b, *of_lengths, *weights, *words, *(source.detach() for source in sources))
    products = multiply or partial(mm, compiled=compiled)
    kept = tuple(of and (of.threshold, of.scale, of.drop) for of in drops)
    how = _How(tuple(sizes), scales, measured, places, make, len(sources), products, directions, masked, kept)
    arenas = arena, None if passing else arena
    return apply(_LowRankLinear, x_nd, weight_od, bias_o, base_no, arenas, how, *rest)  # type: ignore[no-any-return]


class _How(NamedTuple):
    """Arguments of backward besides tensors, in one object, since autograd checks each argument.

    Attributes:
        sizes: outputs of each layer.
        scales: of its addition, None without one.
        measured: places of the layers with DoRA.
        places: of the layers whose weight trains.
        make, sources: function that makes the rows again, and its number of tensors.
        multiply: makes the products.
        directions: DoRA's additions.
        masked: products with dropped rows.
        drops: of each addition what a `Dropped` holds in addition to its words, None without one.
    """

    sizes: tuple[int, ...]
    scales: tuple[float | None, ...]
    measured: tuple[int, ...]
    places: tuple[int, ...]
    make: Callable[..., Tensor] | None
    sources: int
    multiply: Multiply
    directions: Directions
    masked: Masked
    drops: tuple[tuple[int, float, Callable[..., Tensor]] | None, ...]

    @property
    def factors(self) -> tuple[float | None, ...]:
        """`scales`, times what makes up for dropped numbers."""
        drops = iter(self.drops)
        return tuple(s if s is None or (of := next(drops)) is None else s * of[1] for s in self.scales)

    @property
    def words(self) -> int:
        """Tensors of words."""
        return 2 * (len(self.drops) - self.drops.count(None))

    def dropped(self, words: Sequence[Tensor]) -> list[Dropped | None]:
        """What each addition drops; `factors` has the scale."""
        of = iter(words)
        return [drop and Dropped(next(of), next(of), drop[0], 1.0, drop[2]) for drop in self.drops]


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, weight_od: Tensor, bias_o: Tensor | None, base_no: Tensor | None,
        arenas: tuple[Arena | None, Arena | None], how: _How, *matrices: Tensor,
    ) -> Tensor:  # fmt: skip
        """Computes the linear layer with its low-rank additions.

        Args:
            arenas: of h and of the result.
        """
        sizes, scales = how.sizes, how.factors
        count, multiply = len(scales) - scales.count(None), how.multiply
        a, b = matrices[:count], matrices[count : 2 * count]
        needed = bool(count or how.places)
        ctx.how, ctx.make = how, how.make if needed else None
        # saved as tensors, not held by a closure, so that checkpointing can free them
        sources = matrices[len(matrices) - how.sources :] if ctx.make is not None else (x_nd if needed else None,)
        ctx.kept = len(sources)
        dtype = x_nd.dtype if base_no is None else base_no.dtype
        out = None if how.measured else cut(arenas[1], (x_nd.shape[0], weight_od.shape[0]), dtype)
        if not count:
            ctx.save_for_backward(*sources, weight_od)
            return multiply(x_nd, weight_od.t(), bias_o=bias_o, base_no=base_no, out=out)
        a_rd = a[0] if count == 1 else torch.cat(a)
        end = len(matrices) - how.sources
        words, into = matrices[end - how.words : end], cut(arenas[0], (x_nd.shape[0], a_rd.shape[0]), x_nd.dtype)
        if how.words:
            both = zip(how.dropped(words), a, strict=True)
            narrow = [how.masked.narrow(x_nd, of, of_a, multiply) for of, of_a in both]
            h_nr = torch.cat(narrow, 1, out=into)
        else:
            h_nr = multiply(x_nd, a_rd.t(), out=into)
        ctx.ranks = ranks = _ranks(a, scales)
        joined = max(ranks) <= WIDEST_DIAGONAL
        factors = (diagonal(b, sizes, scales),) if joined else b
        more = (h_nr, factors[0].t()) if joined else None
        if how.measured:  # zeros in full precision, so that products are not rounded before they are scaled
            wide_no = x_nd.new_zeros((x_nd.shape[0], weight_od.shape[0]), dtype=result_dtype(x_nd.dtype))
            y_no = multiply(x_nd, weight_od.t(), more=more, base_no=wide_no)
        else:
            y_no = multiply(x_nd, weight_od.t(), more=more, bias_o=bias_o, base_no=base_no, out=out)
        if not joined:
            for (rows, columns), factor, scale in zip(_places(sizes, scales, ranks), b, _given(scales), strict=True):
                y_no[:, rows] += torch.mm(h_nr[:, columns], factor.t()).mul_(scale)
        if not how.measured:
            ctx.save_for_backward(*sources, weight_od, *words, h_nr, a_rd, *factors)
            return y_no
        own = iter(matrices[2 * count :])
        magnitudes = [next(own) if i in how.measured else None for i in range(len(sizes))]
        lengths_o, gains_o = gains(weight_od, sizes, how.scales, a, b, magnitudes, how.directions)
        y_no, product_no = how.directions.scaled(y_no, gains_o, bias_o, base_no, x_nd.dtype)
        ctx.save_for_backward(*sources, weight_od, *words, h_nr, a_rd, *factors, product_no, lengths_o, gains_o)
        return y_no

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_no: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint computes them when asked
        sources, (weight_od, *rest) = saved[: ctx.kept], saved[ctx.kept :]
        how: _How = ctx.how
        multiply = how.multiply
        x_nd = sources[0] if ctx.make is None else ctx.make(*sources)
        d_base = grad_no if ctx.needs_input_grad[3] else None
        of_bias_no = grad_no
        starts = [0, *accumulate(how.sizes)]
        d_magnitudes: list[Tensor] = []
        if how.measured:
            *rest, product_no, lengths_o, gains_o = rest
            grad_no, d_gains_o = how.directions.backward(grad_no, product_no, gains_o)
            d_magnitudes = [(d_gains_o / lengths_o)[starts[i] : starts[i + 1]] for i in how.measured]
        elif grad_no.dtype != weight_od.dtype:
            of_bias_no = grad_no = new_empty(grad_no, dtype=weight_od.dtype).copy_(grad_no)
        d_bias = of_bias_no.sum(0) if ctx.needs_input_grad[2] else None
        below: tuple[Tensor, Tensor] | None = None
        d_dropped: Tensor | None = None
        d_a: Sequence[Tensor] = ()
        d_b: list[Tensor] = []
        if rest:
            words, (h_nr, a_rd, *b) = rest[: how.words], rest[how.words :]
            ranks, scales = ctx.ranks, _given(how.factors)
            places = _places(how.sizes, how.scales, ranks)
            if max(ranks) <= WIDEST_DIAGONAL:
                d_h = multiply(grad_no, b[0])
                d_b_or = multiply(grad_no.t(), h_nr)
                d_b = [d_b_or[place] * scale for place, scale in zip(places, scales, strict=True)]
            else:
                d_h = torch.empty_like(h_nr)
                for (rows, columns), factor, scale in zip(places, b, scales, strict=True):
                    d_h[:, columns] = torch.mm(grad_no[:, rows], factor).mul_(scale)
                    d_b.append(torch.mm(grad_no[:, rows].t(), h_nr[:, columns]).mul_(scale))
            if how.words:
                kept = [(columns, of) for (_, columns), of in zip(places, how.dropped(words), strict=True)]
                d_a = [how.masked.factor(d_h[:, columns], x_nd, of, multiply) for columns, of in kept]
                for columns, of in kept if ctx.needs_input_grad[0] else ():
                    d_dropped = how.masked.rows(d_h[:, columns], a_rd[columns], of, d_dropped, multiply)
            else:
                d_a = torch.split(multiply(d_h.t(), x_nd), [r for r in ranks if r])
                below = d_h, a_rd
        d_x = multiply(grad_no, weight_od, more=below, base_no=d_dropped) if ctx.needs_input_grad[0] else None
        d_weights = [multiply(grad_no[:, starts[i] : starts[i + 1]].t(), x_nd) for i in how.places]
        rest_of = (*d_a, *d_b, *d_magnitudes, *d_weights, *((None,) * (how.words + how.sources)))
        return d_x, None, d_bias, d_base, None, None, *rest_of


def gains(
    weight_od: Tensor, sizes: Sequence[int], scales: Sequence[float | None], a: Sequence[Tensor], b: Sequence[Tensor],
    magnitudes: Sequence[Tensor | None], directions: Directions = torch_directions,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(O,) twice, in full precision: lengths of the rows of W + s B A, rounded as the magnitudes are so that equal ones
    have a ratio of 1, and that ratio. Both are 1 for layers without DoRA.

    Args:
        scales: None for a layer without an addition.
        a, b: of those with one.
    """
    lengths_o = weight_od.new_ones(weight_od.shape[0], dtype=result_dtype(weight_od.dtype))
    gains_o, starts = lengths_o.clone(), [0, *accumulate(sizes)]
    factors = zip(a, b, strict=True)
    for start, stop, scale, magnitude in zip(starts, starts[1:], scales, magnitudes, strict=False):
        if scale is None:
            continue
        of_a, of_b = next(factors)
        if magnitude is not None:
            of_rows = directions.lengths(weight_od[start:stop], of_a, of_b, scale)
            lengths_o[start:stop] = of_rows.to(magnitude.dtype)
            gains_o[start:stop] = magnitude.to(gains_o.dtype) / lengths_o[start:stop]
    return lengths_o, gains_o


def _ranks(a: Sequence[Tensor], scales: Sequence[float | None]) -> tuple[int, ...]:
    """The rank of each layer's addition, 0 without one."""
    factors = iter(a)
    return tuple(next(factors).shape[0] if scale is not None else 0 for scale in scales)


def _given(scales: Sequence[float | None]) -> list[float]:
    """Those that there are."""
    return [scale for scale in scales if scale is not None]


def _places(sizes: Sequence[int], scales: Sequence[float | None], ranks: Sequence[int]) -> list[tuple[slice, slice]]:
    """Place of each addition's block (outputs, ranks)."""
    places, row, column = [], 0, 0
    for size, scale, rank in zip(sizes, scales, ranks, strict=True):
        if scale is not None:
            places.append((slice(row, row + size), slice(column, column + rank)))
        row, column = row + size, column + rank
    return places


def diagonal(b: Sequence[Tensor], sizes: Sequence[int], scales: Sequence[float | None]) -> Tensor:
    """(O, sum of ranks): the B as diagonal blocks, times their scales; layers without one have no columns."""
    factors = iter(b)
    blocks = [b[0].new_empty((n, 0)) if s is None else next(factors) * s for n, s in zip(sizes, scales, strict=True)]
    return blocks[0] if len(blocks) == 1 else torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
