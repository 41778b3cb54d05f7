"""Attention over a stream of segments by Triton kernels: windows, caps on scores and sinks included.

The tree of segments becomes two numbers a row: `until`, the first row that does not see it any more, and `place`, its
position in its sequence. What a block of rows may see is known on the host, as runs of blocks: the kernels walk through
these and read no others. The forward pass runs the softmax along with the keys and keeps its log-sum-exp (Dao, 2023,
arXiv:2307.08691); the backward pass makes the weights again, once for the queries' gradient and once for the keys' and
values', so that nothing is added atomically and results repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from finetooth_kernels import segment_attention as plain
from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.memory import Arena, placed
from finetooth_kernels.segments import Looks, Segment, check_segments, paths
from torch import Tensor
from torch.nn.functional import pad

from finetooth_triton import gpu, layers

__all__ = ["segment_attention_triton", "windowed_attention_triton"]

LEAST = 16
"""Rows, columns and numbers of a product, at least."""
WIDEST = {"nvidia": 256, "cdna": 256, "rdna": 128}
"""Numbers of a head, at most: a thread of RDNA has 256 registers, and its matrix units take operands twice."""
SUMS = 2**12
"""Numbers of a tile of float32 sums, at most: a block of rows or columns, times the numbers of a head."""
NARROW = 64
TILES = {
    "nvidia": (gpu.Tiles(64, 32, 0, warps=4, stages=2), gpu.Tiles(64, 64, 0, warps=8, stages=2)),
    "cdna": (gpu.Tiles(64, 32, 0, warps=4, stages=1),) * 2,
    "rdna": (gpu.Tiles(32, 32, 0, warps=8, stages=1),) * 2,
}
"""For heads of up to NARROW numbers and for wider ones, which are not cut, by what fits into registers (see
docs/benchmarks/kernel-resources.md). No GPU has timed them."""


def segment_attention_triton(
    qkv_nhd: Tensor, segments: Sequence[Segment], *, heads: int, kv_heads: int, scale: float, arena: Arena | None = None
) -> Tensor:
    """See `finetooth_kernels.segment_attention.segment_attention`."""
    if not _reads(qkv_nhd):
        return plain.segment_attention(qkv_nhd, segments, heads=heads, kv_heads=kv_heads, scale=scale, arena=arena)
    return windowed_attention_triton(qkv_nhd, segments, Looks(scale), heads=heads, kv_heads=kv_heads)


def windowed_attention_triton(
    qkv_nhd: Tensor, segments: Sequence[Segment], looks: Looks, *, heads: int, kv_heads: int
) -> Tensor:
    """See `finetooth_kernels.segment_attention.windowed_attention`."""
    if not _reads(qkv_nhd):
        return plain.windowed_attention(qkv_nhd, segments, looks, heads=heads, kv_heads=kv_heads)
    check_segments(segments, qkv_nhd.shape[0])
    if qkv_nhd.stride(-1) != 1:
        qkv_nhd = qkv_nhd.contiguous()
    sinks_h = None if looks.sinks is None else looks.sinks.contiguous()
    return apply(_Seen, qkv_nhd, sinks_h, tuple(segments), looks, heads, kv_heads)  # type: ignore[no-any-return]


def _reads(qkv_nhd: Tensor) -> bool:
    return layers.readable(qkv_nhd, strided=True) and qkv_nhd.shape[2] <= WIDEST[gpu.maker(qkv_nhd.device)]


@lru_cache(maxsize=8)  # every layer of a kind asks for that of the same stream
def _layout(
    segments: tuple[Segment, ...], window: int, rows: int, columns: int, device: torch.device
) -> tuple[Tensor, ...]:
    """int32: place and until of each row, then the runs of blocks of columns that a block of rows may see, then those
    of rows that may see a block of columns. Runs are where each block's begin, then first and last of each."""
    lengths = torch.tensor([segment.stop - segment.start for segment in segments])
    before = [sum(above.stop - above.start for above in path[:-1]) for path in paths(segments)]
    shifts = torch.tensor([own - segment.start for own, segment in zip(before, segments, strict=True)])
    count, tile = segments[-1].stop, max(rows, columns)
    place = torch.arange(count) + shifts.repeat_interleave(lengths)
    until = torch.tensor([segment.below for segment in segments]).repeat_interleave(lengths)
    behind = -count % tile
    last_place = pad(place, (0, behind)).view(-1, columns).amax(1)
    first_place = pad(place, (0, behind), value=count).view(-1, rows).amin(1)
    until = pad(until, (0, behind))  # nothing sees what is behind the last row, and that sees nothing
    starts_r, starts_c = torch.arange(0, count + behind, rows)[:, None], torch.arange(0, count + behind, columns)
    seen = (starts_c < starts_r + rows) & (starts_r < until.view(-1, columns).amax(1))
    if window:
        seen &= first_place[:, None] - last_place < window
    if any(segment.given for segment in segments):
        asked = torch.arange(count) >= torch.tensor([s.start + s.given for s in segments]).repeat_interleave(lengths)
        seen &= pad(asked, (0, behind)).view(-1, rows).any(1)[:, None]
    numbers = [pad(place, (0, behind)), until, *_runs(seen), *_runs(seen.t())]
    aligned = [pad(x.int(), (0, -len(x) % 4)) for x in numbers]
    return torch.split(placed(torch.cat(aligned), device), [len(x) for x in aligned])


def _runs(seen_bc: Tensor) -> tuple[Tensor, Tensor]:
    """Where each block's runs begin, and the first block of each run, and the one behind its last."""
    edges = pad(seen_bc.to(torch.int8), (1, 1)).diff()
    block, first = (edges > 0).nonzero(as_tuple=True)
    counts = torch.bincount(block, minlength=len(seen_bc))
    return pad(counts.cumsum(0), (1, 0)), torch.stack([first, (edges < 0).nonzero()[:, 1]], 1).flatten()


def _tiles(qkv_nhd: Tensor, numbers: int) -> gpu.Tiles:
    """Rows, columns, warps and stages, so that sums fit into registers."""
    tiles, most = gpu.tiles_for(qkv_nhd.dtype, qkv_nhd.device), SUMS * 4 // (numbers * qkv_nhd.element_size())
    own = TILES[gpu.maker(qkv_nhd.device)][numbers > NARROW]
    rows, columns = min(tiles.rows, own.rows, most), min(tiles.columns, own.columns, most)
    return replace(own, rows=max(LEAST, rows), columns=max(LEAST, columns))


class _Launch:
    """What all three kernels are told."""

    def __init__(self, qkv_nhd: Tensor, segments: tuple[Segment, ...], looks: Looks, heads: int, kv_heads: int) -> None:
        count, _, size = qkv_nhd.shape
        numbers = max(LEAST, layers.power(size))
        tiles = _tiles(qkv_nhd, numbers)
        self.places, self.untils, *runs = _layout(segments, looks.window, tiles.rows, tiles.columns, qkv_nhd.device)
        self.seen, self.seeing = runs[:2], runs[2:]
        self.by_rows, self.by_columns = (-(-count // tiles.rows), heads), (-(-count // tiles.columns), kv_heads)
        self.factors = (looks.scale, 1.0) if looks.softcap is None else (looks.scale / looks.softcap, looks.softcap)
        self.sizes = looks.window, count, *qkv_nhd.stride()[:2]
        self.options: dict[str, Any] = {
            "HEADS": heads, "GROUP": heads // kv_heads, "SIZE": size, "WHOLE": numbers == size,
            "WINDOWED": looks.window > 0, "CAPPED": looks.softcap is not None,
            "PRECISION": gpu.product_precision(qkv_nhd.dtype),
            "WIDEN": gpu.interpreted() and qkv_nhd.dtype == torch.bfloat16,
            "ROWS": tiles.rows, "COLUMNS": tiles.columns, "NUMBERS": numbers, "num_warps": tiles.warps,
            "num_stages": tiles.stages,
        }  # fmt: skip


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_nhd: Tensor, sinks_h: Tensor | None, segments: tuple[Segment, ...], looks: Looks, heads: int,
        kv_heads: int,
    ) -> Tensor:  # fmt: skip
        from finetooth_triton.segment_kernels import segment_attention_kernel

        launch = _Launch(qkv_nhd, segments, looks, heads, kv_heads)
        out_nhd = qkv_nhd.new_empty((qkv_nhd.shape[0], heads, qkv_nhd.shape[2]))
        lse_hn = qkv_nhd.new_empty((heads, qkv_nhd.shape[0]), dtype=torch.float32)
        with gpu.on(qkv_nhd.device):
            segment_attention_kernel[launch.by_rows](
                qkv_nhd, launch.places, launch.untils, *launch.seen, lse_hn if sinks_h is None else sinks_h, out_nhd,
                lse_hn, *launch.factors, *launch.sizes, SUNK=sinks_h is not None, **launch.options,
            )  # fmt: skip
        ctx.save_for_backward(qkv_nhd, sinks_h, out_nhd, lse_hn)
        ctx.launch, ctx.scale = launch, looks.scale
        return out_nhd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        from finetooth_triton.segment_kernels import segment_keys_backward_kernel, segment_queries_backward_kernel

        qkv_nhd, sinks_h, out_nhd, lse_hn = ctx.saved_tensors
        launch: _Launch = ctx.launch
        grad_nhd, delta_hn = grad_nhd.contiguous(), torch.empty_like(lse_hn)
        d_qkv = torch.empty_like(qkv_nhd, memory_format=torch.contiguous_format)
        with gpu.on(qkv_nhd.device):
            segment_queries_backward_kernel[launch.by_rows](
                qkv_nhd, launch.places, launch.untils, *launch.seen, out_nhd, grad_nhd, lse_hn, delta_hn, d_qkv,
                ctx.scale, *launch.factors, *launch.sizes, **launch.options,
            )  # fmt: skip
            segment_keys_backward_kernel[launch.by_columns](
                qkv_nhd, launch.places, launch.untils, *launch.seeing, grad_nhd, lse_hn, delta_hn, d_qkv, ctx.scale,
                *launch.factors, *launch.sizes, **launch.options,
            )  # fmt: skip
        d_sinks = None
        if ctx.needs_input_grad[1]:
            d_sinks = (sinks_h.float()[:, None] - lse_hn).exp_().mul_(delta_hn).sum(1).neg_().to(sinks_h.dtype)
        return d_qkv, d_sinks, None, None, None, None
