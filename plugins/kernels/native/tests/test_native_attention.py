"""The compiled attention against masked attention differentiated by autograd in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from finetooth_kernels.segments import Segment
from finetooth_native.attention import attention, attention_backward, library_for_attention, paths_of
from finetooth_native.library import Library
from finetooth_native.operations import segment_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)]
# a tree with branches at two depths, a long row, short rows, and one of a single token
FOREST = (
    Segment(0, 33, 200), Segment(33, 90, 150), Segment(90, 91, 91), Segment(91, 150, 150), Segment(150, 200, 200),
    Segment(200, 420, 420), Segment(420, 421, 421), Segment(421, 437, 437),
)  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(x_nhd: Tensor, segments: tuple[Segment, ...], heads: int, kv_heads: int, scale: float) -> Tensor:
    """Attention with the whole matrix of who sees whom."""
    rows = x_nhd.shape[0]
    sees = torch.zeros(rows, rows, dtype=torch.bool)
    for segment in segments:
        for row in range(segment.start, segment.stop):
            sees[row, segment.start : row + 1] = True
        sees[segment.stop : segment.below, segment.start : segment.stop] = True
    q, k, v = x_nhd.split([heads, kv_heads, kv_heads], 1)
    k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
    scores = (torch.einsum("nhd,mhd->hnm", q, k) * scale).masked_fill(~sees, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


def agree(compiled: Library, x: Tensor, segments: tuple[Segment, ...], heads: int, kv_heads: int, tolerance: float,
          longest: int = 1024) -> None:  # fmt: skip
    """Values, log-sum-exps and gradients, relative to the largest of their kind."""
    scale, paths = x.shape[-1] ** -0.5, paths_of(segments, longest)
    exact = x.double().requires_grad_()
    expected = oracle(exact, segments, heads, kv_heads, scale)
    grad = normal(*expected.shape, seed=1).to(x.dtype)
    (d_expected,) = torch.autograd.grad(expected, exact, grad.double())
    got, lse = attention(compiled, x, paths, heads, kv_heads, scale)
    d_got = attention_backward(compiled, x, got, lse, grad, paths, heads, kv_heads, scale)
    for a, b in ((got, expected), (d_got, d_expected)):
        assert float((a.double() - b.detach()).abs().max()) <= tolerance * float(b.detach().abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 16), (2, 1, 80), (8, 1, 128), (70, 1, 16)])
@pytest.mark.parametrize("longest", [1024, 48])
def test_values_and_gradients(
    compiled: Library, dtype: torch.dtype, tolerance: float, heads: int, kv_heads: int, size: int, longest: int
) -> None:
    x = normal(437, heads + 2 * kv_heads, size).to(dtype)
    agree(compiled, x, FOREST, heads, kv_heads, tolerance, longest)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.integers(0, 40), st.sampled_from(DTYPES))
def test_rows_with_and_without_a_common_beginning(
    compiled: Library, lengths: list[int], common: int, dtype: tuple[torch.dtype, float]
) -> None:
    rows = common + sum(lengths)
    segments = [Segment(0, common, rows)] if common else []
    at = common
    for length in lengths:
        segments.append(Segment(at, at + length, at + length))
        at += length
    agree(compiled, normal(rows, 4, 32).to(dtype[0]), tuple(segments), 2, 1, dtype[1])


def test_the_log_sum_exp_is_that_of_the_scores(compiled: Library) -> None:
    x = normal(50, 3, 16).float()
    _, lse = attention(compiled, x, paths_of((Segment(0, 50, 50),)), 1, 1, 0.5)
    scores = (x[:, 0].double() @ x[:, 1].double().t() * 0.5).masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(lse[0].double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_large_scores(compiled: Library, dtype: torch.dtype, tolerance: float) -> None:
    x = normal(40, 4, 16)
    x[:, :3] += 8.0
    agree(compiled, x.to(dtype), (Segment(0, 40, 40),), 2, 1, 3 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(compiled: Library, dtype: torch.dtype) -> None:
    x, grad = normal(437, 15, 64).to(dtype), normal(437, 9, 64, seed=1).to(dtype)

    def computed(threads: int) -> tuple[Tensor, Tensor]:
        with torch_threads(threads):
            out, lse = attention(compiled, x, paths_of(FOREST), 9, 3, 0.125)
            return out, attention_backward(compiled, x, out, lse, grad, paths_of(FOREST), 9, 3, 0.125)

    once = computed(1)
    for threads in (2, 3):
        for a, b in zip(once, computed(threads), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [0, 1, 63, 64, 300, 1300])
def test_rows_that_are_only_seen_change_no_bit_of_others(compiled: Library, dtype: torch.dtype, given: int) -> None:
    """In a segment of one piece and in one of several, whatever their queries are."""
    x = normal(1701, 5, 32).to(dtype)
    segments = Segment(0, 301, 301, min(given, 300)), Segment(301, 1701, 1701, given)
    plain = tuple(Segment(one.start, one.stop, one.below) for one in segments)
    whole, _ = attention(compiled, x, paths_of(plain), 3, 1, 0.2)
    for one in segments:
        x[one.start : one.start + one.given, :3] = torch.nan
    out, _ = attention(compiled, x, paths_of(segments), 3, 1, 0.2)
    for one in segments:
        asked = slice(one.start + one.given, one.stop)
        assert torch.equal(out[asked], whole[asked])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_shows_where_it_is_seen_and_nowhere_else(compiled: Library, bad: float) -> None:
    x = normal(40, 3, 16).float()
    x[25, 1, 3] = bad  # a key of the first row's second half
    segments = (Segment(0, 30, 30), Segment(30, 40, 40))
    out, _ = attention(compiled, x, paths_of(segments), 1, 1, 0.25)
    finite = torch.isfinite(oracle(x.double(), segments, 1, 1, 0.25))
    assert finite[:25].all() and not finite[25:30].all()
    assert torch.equal(torch.isfinite(out), finite)


def test_it_is_what_segment_attention_uses(
    compiled: Library, native_off: Callable[[], AbstractContextManager[None]]
) -> None:
    x = normal(437, 15, 64).bfloat16().requires_grad_()
    assert library_for_attention(x) is compiled
    assert library_for_attention(normal(4, 3, 8).float()) is None  # no multiple of 16
    assert library_for_attention(x.double()) is None
    both = []
    for off in (False, True):
        with native_off() if off else torch_threads(2):
            out = segment_attention(x, FOREST, heads=9, kv_heads=3, scale=0.125)
            both.append((out, *torch.autograd.grad(out, x, torch.ones_like(out))))
            assert ("Compiled" in type(out.grad_fn).__name__) == (not off)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
