"""Segments through the GPU's flash attention, whose two calls are computed here, in float64, by what they mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from finetooth_kernels import references
from finetooth_kernels import segment_attention as module
from finetooth_kernels.segments import Looks, Segment
from torch import Tensor

HEADS, KV_HEADS, SIZE = 4, 2, 8
TREES = {
    "apart": (Segment(0, 4, 4), Segment(4, 5, 5), Segment(5, 13, 13)),
    "a shared beginning": (Segment(0, 4, 9), Segment(4, 7, 7), Segment(7, 9, 9), Segment(9, 13, 13)),
    "two shared beginnings": (
        Segment(0, 3, 6), Segment(3, 4, 4), Segment(4, 6, 6), Segment(6, 8, 8), Segment(8, 10, 13),
        Segment(10, 12, 12), Segment(12, 13, 13),
    ),
    "a tree of three depths": (
        Segment(0, 2, 9), Segment(2, 5, 8), Segment(5, 8, 8), Segment(8, 9, 9), Segment(9, 13, 13),
    ),
}  # fmt: skip


def sequences(
    q: Tensor, k: Tensor, ends: Tensor, ends_seen: Tensor, causal: bool, scale: float
) -> list[tuple[slice, slice, Tensor]]:
    """Rows, the rows that they see, and (H, n, m) scores of each sequence."""
    found = []
    for at in range(len(ends) - 1):
        rows, seen = (slice(int(of[at]), int(of[at + 1])) for of in (ends, ends_seen))
        keys = k[seen].repeat_interleave(HEADS // KV_HEADS, 1)
        scores = torch.einsum("nhd,mhd->hnm", q[rows], keys) * scale
        if causal:
            assert rows == seen
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
        found.append((rows, seen, scores))
    return found


def forward(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, ends_seen: Tensor, longest: int, longest_seen: int, dropout: float,
    causal: bool, debug: bool, *, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`torch.ops.aten._flash_attention_forward` of sequences of any length."""
    assert (dropout, debug) == (0.0, False) and longest == int(ends.diff().max())
    assert longest_seen == int(ends_seen.diff().max())
    out, lse = torch.empty_like(q), q.new_empty((HEADS, q.shape[0]))
    for rows, seen, scores in sequences(q, k, ends, ends_seen, causal, scale):
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v[seen].repeat_interleave(HEADS // KV_HEADS, 1))
    return out, lse, torch.empty(2), torch.empty(0), torch.empty(0)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Tensor, ends_seen: Tensor,
    longest: int, longest_seen: int, dropout: float, causal: bool, state: Tensor, unused: Tensor, *, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Its backward: probabilities from the given log-sum-exp, delta from the given result."""
    del longest, longest_seen, dropout, state, unused
    group = HEADS // KV_HEADS
    d_q, d_k, d_v = (torch.zeros_like(x) for x in (q, k, v))
    delta = (grad * out).sum(-1).t()
    for rows, seen, scores in sequences(q, k, ends, ends_seen, causal, scale):
        p = (scores - lse[:, rows, None]).exp()
        d_p = torch.einsum("nhd,mhd->hnm", grad[rows], v[seen].repeat_interleave(group, 1))
        d_s = p * (d_p - delta[:, rows, None]) * scale
        d_q[rows] += torch.einsum("hnm,mhd->nhd", d_s, k[seen].repeat_interleave(group, 1))
        d_k[seen] += torch.einsum("hnm,nhd->mhd", d_s, q[rows]).unflatten(1, (KV_HEADS, group)).sum(2)
        d_v[seen] += torch.einsum("hnm,nhd->mhd", p, grad[rows]).unflatten(1, (KV_HEADS, group)).sum(2)
    return d_q, d_k, d_v


@pytest.mark.parametrize("tree", TREES)
def test_parts_join_to_the_whole(tree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", backward)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(13, HEADS + 2 * KV_HEADS, SIZE, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(13, HEADS, SIZE, dtype=torch.float64, generator=generator)
    kinds: dict[str, Any] = {"heads": HEADS, "kv_heads": KV_HEADS, "scale": 0.4}
    ours = module._FlashBySegment.apply(qkv, TREES[tree], HEADS, KV_HEADS, 0.4)  # type: ignore[no-untyped-call]
    exact = references.segment_attention(qkv, TREES[tree], **kinds)
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)
    got, expected = (torch.autograd.grad((x * weights).sum(), qkv)[0] for x in (ours, exact))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("given", [(4, 0, 5), (3, 1, 8), (0, 0, 7)])
@pytest.mark.parametrize("below", [5, 13])
def test_rows_that_are_only_seen_ask_for_nothing(
    given: tuple[int, int, int], below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's flash attention and by windowed attention, whatever their queries are."""
    asked = list[int]()

    def counting(q: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, ...]:
        asked.append(len(q))
        return forward(q, *rest, **named)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", counting)
    plain = (Segment(0, 4, below), Segment(4, 5, 5), Segment(5, 13, 13))
    tree = tuple(replace(one, given=n) for one, n in zip(plain, given, strict=True))
    qkv = torch.randn(13, 8, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = references.segment_attention(qkv, plain, heads=HEADS, kv_heads=KV_HEADS, scale=0.4)
    rows = [n for one in tree for n in range(one.start + one.given, one.stop)]
    qkv[[n for n in range(13) if n not in rows], :HEADS] = torch.nan
    by_flash: Tensor = module._FlashBySegment.apply(qkv, tree, HEADS, KV_HEADS, 0.4)  # type: ignore[no-untyped-call]
    by_windows = module.windowed_attention(qkv, tree, Looks(0.4), heads=HEADS, kv_heads=KV_HEADS)
    for ours in (by_flash, by_windows):
        torch.testing.assert_close(ours[rows], exact[rows], rtol=1e-10, atol=1e-10)
    assert asked[0] == len(rows) and max(asked) <= len(rows)


def test_what_the_kernel_does_not_take_is_computed_all_the_same() -> None:
    """float32 on a device that is not the CPU: torch's own operations, block by block."""
    qkv = torch.empty(13, HEADS + 2 * KV_HEADS, SIZE, device="meta")
    out = module.segment_attention(qkv, TREES["apart"], heads=HEADS, kv_heads=KV_HEADS, scale=0.4)
    assert out.shape == (13, HEADS, SIZE)


def test_torch_takes_and_gives_what_is_handed_to_it() -> None:
    """No GPU is asked: a torch whose kernel has other arguments, or returns other things, is seen here."""
    forward, backward = (
        getattr(torch.ops.aten, f"_flash_attention_{way}").default._schema for way in ("forward", "backward")
    )
    sequences = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    assert [of.name for of in forward.arguments][:10] == ["query", "key", "value", *sequences, "return_debug_mask"]
    assert [of.name for of in forward.returns][:4] == ["output", "softmax_logsumexp", "rng_state", "unused"]
    given = ["grad_out", "query", "key", "value", "out", "logsumexp", *sequences, "rng_state", "unused"]
    assert [of.name for of in backward.arguments][:14] == given
    assert all("scale" in [of.name for of in schema.arguments] for schema in (forward, backward))
