"""The pieces of a decoder layer against plain torch operations differentiated by autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from finetooth_kernels.dropout import Dropped
from finetooth_kernels.gated import ACTIVATIONS, gated
from finetooth_kernels.low_rank_linear import low_rank_linear
from finetooth_kernels.rms_norm import rms_norm
from finetooth_kernels.rotary import rotate
from finetooth_kernels.segment_attention import available, segment_attention, windowed_attention
from finetooth_kernels.segments import Looks, Segment, check_segments, longest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("implementation")

WIDE = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = WIDE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE).to(dtype)


def agree(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Sequence[Tensor], tolerance: float
) -> None:
    """Same values and the same gradients of a random weighted sum."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    a, b = ours(*inputs), plain(*inputs)
    weights = normal(*a.shape, seed=99, dtype=a.dtype)
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for got, expected in zip(
        torch.autograd.grad(a, inputs, weights), torch.autograd.grad(b, inputs, weights), strict=True
    ):
        assert got.dtype == expected.dtype
        scale = float(expected.abs().max()) or 1.0
        torch.testing.assert_close(got / scale, expected / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(WIDE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("shape", [(7, 6), (3, 2, 8)])
def test_rms_norm(dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]) -> None:
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(dtype, torch.float32))
        return weight * (wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()).to(dtype)

    agree(
        lambda x, w: rms_norm(x, w, 1e-5), plain, [normal(*shape, dtype=dtype), normal(shape[-1], seed=1, dtype=dtype)],
        tolerance,
    )  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(WIDE, 1e-12), (torch.bfloat16, 3e-2)])
def test_gated(activation: str, dtype: torch.dtype, tolerance: float) -> None:
    functions = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    }

    def plain(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return functions[activation](gate) * up

    agree(lambda x: gated(x, activation), plain, [normal(5, 12, dtype=dtype)], tolerance)
    with pytest.raises(ValueError, match="'swoosh' is unknown"):
        gated(normal(5, 12), "swoosh")


@pytest.mark.parametrize("rotated", [8, 4])
def test_rotate_is_llamas_rotation_of_the_leading_heads(rotated: int) -> None:
    angles = normal(5, rotated // 2, seed=3)

    def plain(x: Tensor) -> Tensor:
        cos, sin = (torch.cat([f(angles)] * 2, -1).unsqueeze(1) for f in (torch.cos, torch.sin))
        turning, rest = x[:, :3, :rotated], x[:, :3, rotated:]
        first, second = turning.chunk(2, -1)
        turned = turning * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([torch.cat([turned, rest], -1), x[:, 3:]], 1)

    agree(lambda x: rotate(x, angles.cos(), angles.sin(), 3), plain, [normal(5, 4, 8)], 1e-12)


@pytest.mark.parametrize("rank", [2, 65])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("other", [2.0, 0.7])
@pytest.mark.parametrize("dropping", [(), (0,), (0, 2)])
def test_low_rank_linear(rank: int, bias: bool, kept: bool, other: float, dropping: tuple[int, ...]) -> None:
    """Three layers: with an addition, without, and with a weight that trains and one; ranks differ, scales may."""
    sizes, scale = [4, 5, 3], 0.7
    drops = [drops_some(7, 6, seed) if seed in dropping else None for seed in range(3)]
    masks = [1.0 if of is None else of.drop(torch.ones(7, 6, dtype=torch.float64), *of[:4]) for of in drops]
    fixed = normal(9, 6, seed=1)
    offsets = normal(12, seed=2)

    def ours(x: Tensor, a: Tensor, b: Tensor, a2: Tensor, b2: Tensor, last: Tensor, offset: Tensor) -> Tensor:
        rows = x * 1.5
        return (
            low_rank_linear(
                rows,
                torch.cat([fixed, last.detach()]),
                offset if bias else None,
                sizes,
                [(a, b, scale), None, (a2, b2, other)],
                [None, None, last],
                None if kept else (lambda source: source * 1.5, (x,)),
                dropped=drops if dropping else (),
            )
            + 0.0 * offset.sum()
        )

    def plain(x: Tensor, a: Tensor, b: Tensor, a2: Tensor, b2: Tensor, last: Tensor, offset: Tensor) -> Tensor:
        rows = x * 1.5
        first = rows @ fixed[:4].T + scale * (masks[0] * rows @ a.T) @ b.T
        third = rows @ last.T + other * (masks[2] * rows @ a2.T) @ b2.T
        return torch.cat([first, rows @ fixed[4:].T, third], -1) + (offset if bias else 0.0) + 0.0 * offset.sum()

    inputs = [normal(7, 6), normal(rank, 6, seed=4), normal(4, rank, seed=5), normal(1, 6, seed=6)]
    inputs += [normal(3, 1, seed=7), normal(3, 6, seed=8), offsets]
    agree(ours, plain, inputs, 1e-12)


def test_one_low_rank_linear() -> None:
    weight = normal(5, 6, seed=1)
    agree(
        lambda x, a, b: low_rank_linear(x, weight, None, [5], [(a, b, 0.7)]),
        lambda x, a, b: x @ weight.T + 0.7 * (x @ a.T) @ b.T,
        [normal(7, 6), normal(2, 6, seed=2), normal(5, 2, seed=3)],
        1e-12,
    )


def test_nothing_is_kept_where_nothing_trains_behind_it() -> None:
    x = normal(4, 6).requires_grad_()
    kept: list[Any] = []
    weight = normal(5, 6, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low_rank_linear(x, weight, None, [5], [None])
    assert [t.data_ptr() for t in kept if t is not None] == [weight.data_ptr()]


def test_dropout_keeps_neither_what_it_leaves_nor_a_mask() -> None:
    """Words instead, one a row and one a column of each layer."""
    x, weight = normal(40, 30).requires_grad_(), normal(16, 30, seed=1)
    additions = [(normal(2, 30, seed=2).requires_grad_(), normal(8, 2, seed=3).requires_grad_(), 0.5) for _ in range(2)]
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        drops = [drops_some(40, 30, seed) for seed in range(2)]
        low_rank_linear(x, weight, None, [8, 8], additions, dropped=drops, again=(torch.clone, (x,)))
    shapes = [tuple(t.shape) for t in kept if t is not None and t.data_ptr() != x.data_ptr()]
    assert sorted(shapes) == sorted([(16, 30), *[(40,), (30,)] * 2, (40, 4), (4, 30), (16, 4)])


def drops_some(rows: int, columns: int, seed: int) -> Dropped:
    draw = torch.Generator().manual_seed(seed)
    words = [torch.randint(-(2**31), 2**31, (n,), generator=draw).int() for n in (rows, columns)]
    return Dropped(*words, -(2**29), 1.6)


def sees(segments: Sequence[Segment], rows: int) -> Tensor:
    """(N, N) who sees whom, from the definition."""
    mask = torch.zeros(rows, rows, dtype=torch.bool)
    for segment in segments:
        for row in range(segment.start, segment.stop):
            mask[row, segment.start : row + 1] = True
        mask[segment.stop : segment.below, segment.start : segment.stop] = True
    return mask


@st.composite
def trees(draw: st.DrawFn) -> list[Segment]:
    """Segments of a stream in depth-first order."""
    segments: list[Segment] = []

    def grow(start: int, depth: int) -> int:
        stop = start + draw(st.integers(1, 9))
        place = len(segments)
        segments.append(Segment(start, stop, stop))
        below = stop
        for _ in range(draw(st.integers(0, 3)) if depth < 3 else 0):
            below = grow(below, depth + 1)
        segments[place] = Segment(start, stop, below)
        return below

    at = 0
    for _ in range(draw(st.integers(1, 3))):
        at = grow(at, 0)
    return segments


def whole(x: Tensor, mask: Tensor, heads: int, kv_heads: int, scale: float) -> Tensor:
    q, k, v = x.split([heads, kv_heads, kv_heads], 1)
    k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
    scores = (torch.einsum("nhd,mhd->hnm", q, k) * scale).masked_fill(~mask, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


@settings(deadline=None)
@given(trees(), st.sampled_from([(4, 2), (3, 3), (6, 1)]))
def test_segment_attention_is_masked_attention(segments: list[Segment], heads: tuple[int, int]) -> None:
    rows = segments[-1].stop
    rows = max(segment.below for segment in segments)
    check_segments(segments, rows)
    mask = sees(segments, rows)
    agree(
        lambda x: segment_attention(x, segments, heads=heads[0], kv_heads=heads[1], scale=0.3),
        lambda x: whole(x, mask, *heads, 0.3),
        [normal(rows, heads[0] + 2 * heads[1], 8)],
        1e-9,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_segment_attention_over_many_blocks(dtype: torch.dtype, tolerance: float) -> None:
    segments = [Segment(0, 40, 460), Segment(40, 340, 340), Segment(340, 460, 460), Segment(460, 610, 610)]
    mask = sees(segments, 610)
    agree(
        lambda x: segment_attention(x, segments, heads=4, kv_heads=2, scale=0.25),
        lambda x: whole(x.float(), mask, 4, 2, 0.25).to(dtype),
        [normal(610, 8, 16, dtype=dtype)],
        tolerance,
    )


def test_segment_attention_in_half_precision_with_large_scores() -> None:
    """Key biases, as some families have them, make scores of hundreds; their rounding must not reach the gradients."""
    segments = [Segment(0, 40, 40)]
    rows = normal(40, 4, 16)
    rows[:, :3] += 8.0
    rows = rows.bfloat16()
    agree(
        lambda x: segment_attention(x, segments, heads=2, kv_heads=1, scale=0.25),
        lambda x: whole(x.double(), sees(segments, 40), 2, 1, 0.25).to(torch.bfloat16),
        [rows],
        3e-2,
    )


@settings(deadline=None)
@given(trees(), st.sampled_from([(4, 2), (3, 3), (6, 1)]), st.sampled_from([0, 1, 3, 7]), st.booleans(), st.booleans())
def test_windowed_attention_has_windows_caps_and_sinks(
    segments: list[Segment], heads: tuple[int, int], window: int, capped: bool, sunk: bool
) -> None:
    """From the definitions: positions are counted along a sequence, whatever stands between its parts."""
    rows, places = max(segment.below for segment in segments), [0] * max(segment.below for segment in segments)
    mask = sees(segments, rows)
    for row in range(rows):
        places[row] = int(mask[row].sum()) - 1
    assert longest(segments) == max(places) + 1
    if window:
        at = torch.tensor(places)
        mask &= at[None] > at[:, None] - window
    cap = 0.7 if capped else None

    def defined(x: Tensor, sinks: Tensor) -> Tensor:
        q, k, v = x.split([heads[0], heads[1], heads[1]], 1)
        k, v = (part.repeat_interleave(heads[0] // heads[1], 1) for part in (k, v))
        scores = torch.einsum("nhd,mhd->hnm", q, k) * 0.3
        scores = (scores if cap is None else cap * torch.tanh(scores / cap)).masked_fill(~mask, -torch.inf)
        sunken = torch.cat([scores, sinks[:, None, None].expand(-1, rows, 1)], -1).softmax(-1)[..., :-1]
        return torch.einsum("hnm,mhd->nhd", sunken if sunk else scores.softmax(-1) + 0 * sinks.sum(), v)

    def ours(x: Tensor, sinks: Tensor) -> Tensor:
        looks = Looks(0.3, window, cap, sinks if sunk else None)
        return windowed_attention(x, segments, looks, heads=heads[0], kv_heads=heads[1]) + 0 * sinks.sum()

    agree(ours, defined, [normal(rows, heads[0] + 2 * heads[1], 8), normal(heads[0], seed=1)], 1e-9)


def test_windowed_attention_over_many_blocks() -> None:
    segments = [Segment(0, 40, 460), Segment(40, 340, 340), Segment(340, 460, 460), Segment(460, 610, 610)]
    agree(
        lambda x: windowed_attention(x, segments, Looks(0.25, 1000), heads=4, kv_heads=2),
        lambda x: whole(x.float(), sees(segments, 610), 4, 2, 0.25).to(torch.bfloat16),
        [normal(610, 8, 16, dtype=torch.bfloat16)],
        3e-2,
    )


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [Segment(0, 4, 4)],
        [Segment(0, 3, 3), Segment(4, 6, 6)],
        [Segment(0, 3, 2), Segment(3, 6, 6)],
        [Segment(0, 3, 5), Segment(3, 6, 6)],
        [Segment(0, 0, 6), Segment(0, 6, 6)],
    ],
)
def test_segments_that_are_no_tree_of_the_rows_are_refused(segments: list[Segment]) -> None:
    with pytest.raises(ValueError, match=r"segment|Segment"):
        check_segments(segments, 6)


def test_segment_attention_says_where_it_runs() -> None:
    assert available("cpu").available
    assert not available("cuda").available and "CPU" in available("cuda").reason
