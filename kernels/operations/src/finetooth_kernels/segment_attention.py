"""Causal attention over sequences that stand one behind the other and may share how they begin.

The rows of a batch are segments of one stream. A segment's rows see the earlier rows of their segment and all rows of
the segments above it: a prompt that several sequences share is one segment with the sequences below it, and is
computed once. Segments stand in depth-first order, so the rows below a segment follow it directly. Nothing is padded,
and no mask is built.

Forward, each part (a segment on itself, causal; the rows below a segment on that segment, whole) goes through torch's
flash attention, and parts are joined by their log-sum-exp. On an NVIDIA GPU all parts of a depth are one call of the
kernel that takes sequences of any length, and its own backward pass is given the joined result: the gradients of the
parts add up. Where there is neither, `windowed_attention` computes.

Backward on a CPU (Dao et al., 2022, arXiv:2205.14135, appendix B.4) makes the probabilities again, a block of queries
at a time, with the heads of a key-value group as one matrix product. With P = exp(scale Q K^T - lse) and delta = sum
over a row of dO O,

    dV = P^T dO        dS = scale P (dO V^T - delta)        dQ = dS K        dK = dS^T Q
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from finetooth_kernels.autograd import apply, once_differentiable
from finetooth_kernels.contract import Availability, result_dtype
from finetooth_kernels.memory import Arena, placed
from finetooth_kernels.segments import Looks, Segment, check_segments, paths

__all__ = ["available", "windowed_attention", "segment_attention"]

QUERY_BLOCK = 128
"""Queries whose probabilities exist at once in backward: with their group's heads and up to a few hundred keys they
stay in a core's cache."""

WIDE_BLOCK = 1024
"""With fewer keys than this, a block takes correspondingly more queries."""


FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""Arguments of flash attention on a GPU."""

LEAST_CAPABILITY = (8, 0)
"""The compute capability from which NVIDIA GPUs have it."""


def available(device: torch.device | str = "cpu") -> Availability:
    """Whether `segment_attention` is fast there: torch's flash attention for that device is called by name."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        if torch.version.hip is not None:
            return Availability(False, "flash attention over segments was never tried on an AMD GPU")
        if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
            return Availability(False, "flash attention needs compute capability 8.0")
        return Availability(True, "flash attention over sequences of any length, nothing padded")
    if device.type != "cpu":
        return Availability(False, "it calls torch's flash attention for CPUs and NVIDIA GPUs by name")
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return Availability(False, "this torch has no flash attention for CPUs")
    return Availability(True, "flash attention by segment, nothing padded")


def segment_attention(
    qkv_nhd: Tensor,
    segments: Sequence[Segment],
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    arena: Arena | None = None,
) -> Tensor:
    """Attention of every row to its visible positions.

    Args:
        qkv_nhd: (N, heads + 2 kv_heads, D): queries, keys and values of each row.
        segments: they cover the N rows, in depth-first order (`check_segments`).
        heads, kv_heads: query heads, and key-value heads that groups of them share.
        scale: of the scores, usually 1 / sqrt(D).
        arena: not used; providers that write into memory of their own cut the result and what is kept from it.

    Returns:
        (N, heads, D) in the same dtype.

    Raises:
        ValueError: the segments do not form a tree over the N rows.
    """
    del arena
    if qkv_nhd.device.type != "cpu" and not _has_flash(qkv_nhd):
        return windowed_attention(qkv_nhd, segments, Looks(scale), heads=heads, kv_heads=kv_heads)
    if qkv_nhd.stride(-1) != 1:  # torch's kernel takes numbers of a head for neighbours, and does not look
        qkv_nhd = qkv_nhd.contiguous()
    check_segments(segments, qkv_nhd.shape[0])
    if qkv_nhd.device.type != "cpu":
        return apply(_FlashBySegment, qkv_nhd, tuple(segments), heads, kv_heads, scale)  # type: ignore[no-any-return]
    return apply(_SegmentAttention, qkv_nhd, tuple(segments), heads, kv_heads, scale)  # type: ignore[no-any-return]


def _flash(q_nhd: Tensor, k_nkd: Tensor, v_nkd: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(n, H, D) output and (H, n) log-sum-exp."""
    groups = q_nhd.shape[1] // k_nkd.shape[1]
    keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1).unsqueeze(0) for x in (k_nkd, v_nkd))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_nhd.transpose(0, 1).unsqueeze(0), keys, values, 0.0, causal, scale=scale
    )
    return out[0].transpose(0, 1), lse[0]


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_nhd: Tensor, segments: tuple[Segment, ...], heads: int, kv_heads: int, scale: float
    ) -> Tensor:
        q, k, v = torch.split(qkv_nhd, [heads, kv_heads, kv_heads], 1)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty((heads, q.shape[0]), dtype=result_dtype(q.dtype))
        for own in segments:
            rows = slice(own.start, own.stop)
            out[rows], lse[:, rows] = _flash(q[rows], k[rows], v[rows], causal=True, scale=scale)
        for above in segments:
            if above.below > above.stop:
                rows, seen = slice(above.stop, above.below), slice(above.start, above.stop)
                more, lse_more = _flash(q[rows], k[seen], v[seen], causal=False, scale=scale)
                joined = torch.logaddexp(lse[:, rows], lse_more)
                share = (lse_more - joined).exp_().t().unsqueeze(-1)
                out[rows] = torch.lerp(out[rows].to(lse.dtype), more.to(lse.dtype), share)
                lse[:, rows] = joined
        ctx.save_for_backward(qkv_nhd, out, lse)
        ctx.segments, ctx.heads, ctx.kv_heads, ctx.scale = segments, heads, kv_heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        qkv_nhd, out_nhd, lse_hn = ctx.saved_tensors
        work = _Backward(qkv_nhd, out_nhd, lse_hn, grad_nhd, ctx.heads, ctx.kv_heads, ctx.scale)
        for segment in ctx.segments:
            for start, stop in _cut(segment.start, segment.stop, QUERY_BLOCK):
                work.block(slice(start, stop), slice(segment.start, stop), causal=True)
            few = QUERY_BLOCK * max(1, WIDE_BLOCK // (segment.stop - segment.start))
            for start, stop in _cut(segment.stop, segment.below, few):
                work.block(slice(start, stop), slice(segment.start, segment.stop), causal=False)
        return work.gradient(), None, None, None, None


def _cut(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, size):
        yield at, min(at + size, stop)


class _Backward:
    """Gathers dQ, dK, dV in float32; K heads, G queries a key-value head, so that a group's G n rows are one matrix."""

    def __init__(
        self, qkv: Tensor, out: Tensor, lse_hn: Tensor, grad: Tensor, heads: int, kv_heads: int, scale: float
    ) -> None:
        self._dtype, wide, self._scale = qkv.dtype, lse_hn.dtype, scale
        rows, size = qkv.shape[0], qkv.shape[2]
        self._shape = kv_heads, heads // kv_heads, rows, size
        grouped = kv_heads, heads // kv_heads, rows
        q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], 1)
        delta_hn = torch.linalg.vecdot(grad.to(wide), out.to(wide)).t()
        self._q, self._grad = (x.transpose(0, 1).reshape(*grouped, size) for x in (q, grad))
        self._k, self._v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
        # scores as exact as in the forward pass: rounded to half precision, large ones would not match its log-sum-exp
        self._wide_q, self._wide_k = self._q.to(wide), self._k.to(wide)
        self._minus_lse, self._minus_delta = lse_hn.neg().reshape(grouped), delta_hn.neg().reshape(grouped)
        self._dq = torch.zeros_like(self._q, dtype=wide)
        self._dk, self._dv = (torch.zeros_like(x, dtype=wide) for x in (self._k, self._v))

    def block(self, rows: slice, seen: slice, *, causal: bool) -> None:
        """The part of queries `rows` from keys `seen`; causal: the last n of the keys are the n queries' own rows."""
        kv_heads, group, _, size = self._shape
        n, m = rows.stop - rows.start, seen.stop - seen.start
        flat = kv_heads, group * n
        queries, grad = self._q[:, :, rows].reshape(*flat, size), self._grad[:, :, rows].reshape(*flat, size)
        keys, values = self._k[:, seen], self._v[:, seen]
        wide_queries = self._wide_q[:, :, rows].reshape(*flat, size)
        scores = torch.bmm(wide_queries, self._wide_k[:, seen].transpose(1, 2))
        minus_lse = self._minus_lse[:, :, rows].reshape(*flat, 1)
        weights = torch.add(minus_lse, scores, alpha=self._scale, out=scores).exp_()
        if causal:
            weights.view(kv_heads, group, n, m)[..., m - n :].tril_()
        self._dv[:, seen] += torch.bmm(weights.to(self._dtype).transpose(1, 2), grad)
        d_weights = torch.bmm(grad, values.transpose(1, 2))
        d_scores = torch.add(self._minus_delta[:, :, rows].reshape(*flat, 1), d_weights).mul_(weights).to(self._dtype)
        self._dq[:, :, rows] += torch.bmm(d_scores, keys).view(kv_heads, group, n, size)
        self._dk[:, seen] += torch.bmm(d_scores.transpose(1, 2), queries)

    def gradient(self) -> Tensor:
        """(N, heads + 2 kv_heads, D)."""
        kv_heads, group, rows, size = self._shape
        parts = (self._dq.view(kv_heads * group, rows, size).mul_(self._scale), self._dk.mul_(self._scale), self._dv)
        counts = [part.shape[0] for part in parts]
        gradient: Tensor = self._k.new_empty((rows, sum(counts), size))
        for part, place in zip(parts, torch.split(gradient, counts, 1), strict=True):
            place.copy_(part.transpose(0, 1))
        return gradient


def _has_flash(qkv_nhd: Tensor) -> bool:
    """Whether the GPU's kernel takes heads like these."""
    size = qkv_nhd.shape[-1]
    fits = qkv_nhd.dtype in FLASH_DTYPES and size <= 256 and size % 8 == 0 and qkv_nhd.numel() > 0
    return fits and available(qkv_nhd.device).available


@dataclass(frozen=True)
class _Part:
    """Sequences that one call of the kernel takes: queries, and the keys that each sees.

    Attributes:
        rows, seen: (R,) and (M,) rows of the stream, sequence by sequence; None: all of them, in order.
        ends, ends_seen: (sequences + 1,) int32, where each begins, and the end.
        longest, longest_seen: most rows of a sequence.
        causal: each query sees the keys up to its own row.
    """

    rows: Tensor | None
    seen: Tensor | None
    ends: Tensor
    ends_seen: Tensor
    longest: int
    longest_seen: int
    causal: bool


@lru_cache(maxsize=4)  # every layer asks for the parts of the same stream
def _parts(segments: tuple[Segment, ...], device: torch.device) -> tuple[_Part, ...]:
    """The segments on themselves, then depth by depth the rows below each on it. Rows that are only seen are like a
    segment above the rest of theirs."""
    rows = torch.arange(segments[-1].stop)
    asked = torch.ones_like(rows, dtype=torch.bool)
    by_depth: dict[int, list[Segment]] = {}
    for path in paths(segments):
        own = path[-1]
        asked[own.start : own.start + own.given] = False
        if own.given:
            by_depth.setdefault(-1, []).append(Segment(own.start, own.start + own.given, own.stop))
        if own.below > own.stop:
            by_depth.setdefault(len(path), []).append(own)
    alone = [rows[s.start + s.given : s.stop] for s in segments]
    parts = [_part(alone, alone, device, causal=True, every=bool(asked.all()))]
    for above in by_depth.values():
        below = [rows[s.stop : s.below][asked[s.stop : s.below]] for s in above]
        parts.append(_part(below, [rows[s.start : s.stop] for s in above], device, causal=False))
    return tuple(part for part in parts if part.longest)


def _part(
    rows: Sequence[Tensor], seen: Sequence[Tensor], device: torch.device, *, causal: bool, every: bool = False
) -> _Part:
    def ends(runs: Sequence[Tensor]) -> Tensor:
        lengths = accumulate((len(run) for run in runs), initial=0)
        return placed(torch.tensor(list(lengths), dtype=torch.int32), device)

    longest, longest_seen = (max(len(run) for run in runs) for runs in (rows, seen))
    picked, picked_seen = (None if every else placed(torch.cat(list(runs)), device) for runs in (rows, seen))
    return _Part(picked, picked_seen, ends(rows), ends(seen), longest, longest_seen, causal)


def _taken(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


class _FlashBySegment(torch.autograd.Function):
    """(Dao, 2023, arXiv:2307.08691), by `torch.ops.aten._flash_attention_forward` and its backward."""

    @staticmethod
    def forward(
        ctx: Any, qkv_nhd: Tensor, segments: tuple[Segment, ...], heads: int, kv_heads: int, scale: float
    ) -> Tensor:
        q, k, v = torch.split(qkv_nhd, [heads, kv_heads, kv_heads], 1)
        ctx.parts, ctx.sizes, ctx.scale = _parts(segments, qkv_nhd.device), (heads, kv_heads), scale
        ctx.states = []
        whole: tuple[Tensor, Tensor] | None = None
        for part in ctx.parts:
            out, lse, *state = torch.ops.aten._flash_attention_forward(
                _taken(q, part.rows), _taken(k, part.seen), _taken(v, part.seen), part.ends, part.ends_seen,
                part.longest, part.longest_seen, 0.0, part.causal, False, scale=scale,
            )  # fmt: skip
            ctx.states.append(tuple(state[:2]))
            rows = part.rows
            if rows is None:
                whole = out, lse
                continue
            if whole is None:  # rows that are only seen stay as they are
                whole = (
                    torch.zeros_like(q, memory_format=torch.contiguous_format),
                    lse.new_full(q.shape[1::-1], -torch.inf),
                )
            above, lse_above = whole[0].index_select(0, rows), whole[1].index_select(1, rows)
            joined = torch.logaddexp(lse_above, lse)
            share = (lse - joined).exp_().t().unsqueeze(-1)
            whole[0][rows] = torch.lerp(above.to(lse.dtype), out.to(lse.dtype), share).to(out.dtype)
            whole[1][:, rows] = joined
        assert whole is not None
        ctx.save_for_backward(qkv_nhd, *whole)
        return whole[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        qkv_nhd, out_nhd, lse_hn = ctx.saved_tensors
        heads, kv_heads = ctx.sizes
        q, k, v = torch.split(qkv_nhd, [heads, kv_heads, kv_heads], 1)
        gradients: list[Tensor] = []
        for part, state in zip(ctx.parts, ctx.states, strict=True):
            rows, seen = part.rows, part.seen
            lse = lse_hn if rows is None else lse_hn.index_select(1, rows)
            own = torch.ops.aten._flash_attention_backward(
                _taken(grad_nhd, rows).contiguous(), _taken(q, rows), _taken(k, seen), _taken(v, seen),
                _taken(out_nhd, rows), lse, part.ends, part.ends_seen, part.longest, part.longest_seen, 0.0,
                part.causal, *state, scale=ctx.scale,
            )  # fmt: skip
            if rows is None:  # sums of parts in full precision, where there are several
                gradients = list(own) if len(ctx.parts) == 1 else [x.to(lse.dtype) for x in own]
                continue
            for total, places, x in zip(gradients, (rows, seen, seen), own, strict=True):
                total.index_add_(0, places, x.to(total.dtype))
        return torch.cat([x.to(qkv_nhd.dtype) for x in gradients], 1), None, None, None, None


def windowed_attention(
    qkv_nhd: Tensor, segments: Sequence[Segment], looks: Looks, *, heads: int, kv_heads: int
) -> Tensor:  # fmt: skip
    """Attention with a window, a cap on scores or sinks, in torch's operations on any device: a block of queries at a
    time against the keys that it sees, whose weights are made again in backward.

    With t = cap tanh(s / cap) of the scores s, P = exp(t - lse), z the sinks, which are part of lse:

        dS = scale P (dO V^T - delta) (1 - (t / cap)^2)        dz = - sum over rows of exp(z - lse) delta

    Args:
        qkv_nhd: (N, heads + 2 kv_heads, D), as in `segment_attention`.

    Returns:
        (N, heads, D) in the same dtype.

    Raises:
        ValueError: the segments do not form a tree over the N rows.
    """
    check_segments(segments, qkv_nhd.shape[0])
    return apply(_SeenAttention, qkv_nhd, looks.sinks, tuple(segments), looks, heads, kv_heads)  # type: ignore[no-any-return]


class _Blocks:
    """Queries of a block and the keys that they see; (K, G, n, D) and (K, m, D) in the precision of the softmax."""

    def __init__(self, qkv_nhd: Tensor, segments: tuple[Segment, ...], looks: Looks, heads: int, kv_heads: int) -> None:
        self._segments, self._looks, self.wide = segments, looks, result_dtype(qkv_nhd.dtype)
        q, k, v = torch.split(qkv_nhd, [heads, kv_heads, kv_heads], 1)
        self.q = torch.unflatten(q, 1, (kv_heads, -1)).permute(1, 2, 0, 3)
        self.k, self.v = k.transpose(0, 1), v.transpose(0, 1)

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Rows of the queries, rows of the keys, keys and values, and the scores (K, G, n, m), -inf where not seen."""
        looks, device = self._looks, self.q.device
        for above in paths(self._segments):
            segment, path = above[-1], torch.cat([torch.arange(s.start, s.stop, device=device) for s in above])
            before = len(path) - (segment.stop - segment.start)
            for start, stop in _cut(segment.start + segment.given, segment.stop, QUERY_BLOCK):
                first, last = before + start - segment.start, before + stop - segment.start
                lowest = max(0, first - looks.window + 1) if looks.window else 0
                seen, rows = path[lowest:last], slice(start, stop)
                keys, values = (x.index_select(1, seen).to(self.wide) for x in (self.k, self.v))
                scores = self.q[:, :, rows].to(self.wide) @ keys.unsqueeze(1).transpose(2, 3) * looks.scale
                if looks.softcap is not None:
                    scores = looks.softcap * torch.tanh(scores / looks.softcap)
                at, of = torch.arange(first, last, device=device)[:, None], torch.arange(lowest, last, device=device)
                hidden = of > at if not looks.window else (of > at) | (of <= at - looks.window)
                yield rows, seen, keys, values, scores.masked_fill_(hidden, -torch.inf)

    def uncapped(self, scores: Tensor) -> Tensor | float:
        """The derivative of capped scores; of hidden ones any number."""
        cap = self._looks.softcap
        return 1.0 if cap is None else 1 - (scores / cap).clamp_(-1, 1).square_()


class _SeenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_nhd: Tensor, sinks_h: Tensor | None, segments: tuple[Segment, ...], looks: Looks, heads: int,
        kv_heads: int,
    ) -> Tensor:  # fmt: skip
        blocks = _Blocks(qkv_nhd, segments, looks, heads, kv_heads)
        out_kgnd = torch.empty(blocks.q.shape, dtype=blocks.wide, device=qkv_nhd.device)
        lse_kgn = out_kgnd.new_empty(out_kgnd.shape[:3])
        sinks = None if sinks_h is None else sinks_h.to(blocks.wide).view(kv_heads, -1, 1)
        for rows, _, _, values, scores in blocks:
            lse = scores.logsumexp(-1)
            lse = lse if sinks is None else torch.logaddexp(lse, sinks)
            lse_kgn[:, :, rows] = lse
            out_kgnd[:, :, rows] = scores.sub_(lse.unsqueeze(-1)).exp_() @ values.unsqueeze(1)
        out_nhd = out_kgnd.permute(2, 0, 1, 3).flatten(1, 2).to(qkv_nhd.dtype)
        ctx.save_for_backward(qkv_nhd, sinks_h, out_nhd, lse_kgn)
        ctx.rest = segments, looks, heads, kv_heads
        return out_nhd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhd: Tensor) -> tuple[Tensor | None, ...]:
        qkv_nhd, sinks_h, out_nhd, lse_kgn = ctx.saved_tensors
        _, looks, _, kv_heads = ctx.rest
        blocks = _Blocks(qkv_nhd, *ctx.rest)
        grad_kgnd, out_kgnd = (
            torch.unflatten(x.to(blocks.wide), 1, (kv_heads, -1)).permute(1, 2, 0, 3) for x in (grad_nhd, out_nhd)
        )
        delta_kgn = torch.linalg.vecdot(grad_kgnd, out_kgnd)
        d_q = torch.zeros_like(out_kgnd, memory_format=torch.contiguous_format)
        d_k, d_v = (
            torch.zeros_like(x, dtype=blocks.wide, memory_format=torch.contiguous_format) for x in (blocks.k, blocks.v)
        )
        for rows, seen, keys, values, scores in blocks:
            weights = (scores - lse_kgn[:, :, rows].unsqueeze(-1)).exp_()
            grad = grad_kgnd[:, :, rows]
            d_v.index_add_(1, seen, (weights.transpose(2, 3) @ grad).sum(1))
            d_scores = (grad @ values.unsqueeze(1).transpose(2, 3)).sub_(delta_kgn[:, :, rows].unsqueeze(-1))
            d_scores = d_scores.mul_(weights).mul_(blocks.uncapped(scores)).mul_(looks.scale)
            d_q[:, :, rows] = d_scores @ keys.unsqueeze(1)
            d_k.index_add_(1, seen, (d_scores.transpose(2, 3) @ blocks.q[:, :, rows].to(blocks.wide)).sum(1))
        parts = [d_q.flatten(0, 1), d_k, d_v]
        d_sinks = None
        if ctx.needs_input_grad[1]:
            of_sinks = (sinks_h.to(blocks.wide).view(kv_heads, -1, 1) - lse_kgn).exp_().mul_(delta_kgn)
            d_sinks = of_sinks.sum(-1).neg_().flatten().to(sinks_h.dtype)
        return torch.cat([x.transpose(0, 1) for x in parts], 1).to(qkv_nhd.dtype), d_sinks, None, None, None, None
