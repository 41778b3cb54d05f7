"""Triton kernels of layers under Triton's interpreter, against float64: norms, attention to a cache, LoRA, dropout.

Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported. test_triton_interpreter.py runs it.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from finetooth_kernels import dropout, references, rotary
from finetooth_kernels.dropout import Dropped
from finetooth_kernels.fp8 import E4M3, E5M2, rounded
from finetooth_kernels.references import cached_attention as cached_attention_reference
from finetooth_triton import cached_attention, eight_bits, gpu, layers, masked
from finetooth_triton.cached_attention import CachedAttention
from finetooth_triton.directions import low_rank_linear_triton
from finetooth_triton.masked import MASKED
from torch.utils._python_dispatch import TorchDispatchMode

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"

ROUNDING = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""One unit in the last place: the interpreter cuts off where devices round to nearest."""


@pytest.fixture(autouse=True, scope="module")
def small_tiles() -> Iterator[None]:
    """Tiles so small that small problems have several in every direction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "tiles_for", lambda dtype, device: gpu.Tiles(16, 16, 16, 4, 2, group=2))
        yield


@pytest.mark.parametrize("shape", [(1, 127), (129, 65)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eight", [E4M3, E5M2])
def test_numbers_are_rounded_as_torch_rounds_them(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], dtype: torch.dtype, eight: torch.dtype
) -> None:
    """Every level of the format and what is too small for it; row by row, column by column, and by a known scale."""
    monkeypatch.setattr(eight_bits, "LANES", 1024)
    monkeypatch.setattr(eight_bits, "PARTS", 4)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    t = (numbers * torch.logspace(-9, 3, shape[1])).to(dtype)
    wanted = rounded(t, eight)
    turned = eight_bits.rounded_triton(t, eight, by_columns=True)
    known = eight_bits.rounded_triton(t, eight, scale=wanted.scale)
    for found in (eight_bits.rounded_triton(t, eight), turned, known):
        assert found.values.dtype == eight and torch.equal(found.scale, wanted.scale)
        assert torch.equal(found.values.float(), wanted.values.float())
    assert turned.values.t().is_contiguous() and turned.values.shape == shape
    assert float(eight_bits.rounded_triton(torch.zeros_like(t), eight).scale) == 1.0


class Cache:
    """Queries, and a cache of 37 columns in use within more rows and columns of NaN.

    Args:
        samples: rows of a prompt; with several, the prompt's columns stand apart.
    """

    def __init__(self, dtype: torch.dtype, *, group: int = 3, size: int = 32, samples: int = 1, scale: float = 0.25):
        draw = torch.Generator().manual_seed(1)
        self.starts, self.samples, self.scale, rows = torch.tensor([0, 7, 19]), samples, scale, 3 * samples
        self.qkv = torch.randn((rows, 2 * (group + 2), size), generator=draw).to(dtype)
        whole = torch.full((2, rows + 2, 2, 42, size), math.nan, dtype=dtype)
        self.own = whole[:, :rows]
        self.own[:, :, :, :36] = torch.randn((2, rows, 2, 36, size), generator=draw).to(dtype)
        self.above = torch.randn((2, 3, 2, 23, size), generator=draw).to(dtype) if samples > 1 else None

    def attended(self, compute: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The result, and the cache behind it."""
        own = self.own.clone()
        attend = compute(self.qkv, self.qkv.shape[2])
        assert attend is not None
        out = attend(
            self.qkv, own, torch.tensor([37]), self.scale, starts_p=self.starts, samples=self.samples,
            above_hpkwd=self.above,
        )  # fmt: skip
        return out, own


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(("group", "size"), [(1, 16), (3, 48), (17, 144)])
@pytest.mark.parametrize("samples", [1, 2])
def test_attention_to_a_cache_against_float64(dtype: torch.dtype, group: int, size: int, samples: int) -> None:
    """It is rounded once, and nothing is written behind the newest column."""
    case = Cache(dtype, group=group, size=size, samples=samples, scale=1.5 * size**-0.5)
    (got, own), (expected, kept) = (case.attended(f) for f in (CachedAttention.ready, cached_attention_reference))
    torch.testing.assert_close(got.double(), expected.double(), rtol=1.5 * ROUNDING[dtype], atol=5e-6)
    torch.testing.assert_close(own, kept, rtol=0, atol=0, equal_nan=True)
    assert not got.isnan().any()


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_padding_of_a_cache_changes_no_bit_and_nan_stays_in_its_head(dtype: torch.dtype) -> None:
    case = Cache(dtype)
    every, _ = case.attended(CachedAttention.ready)
    attend = CachedAttention.ready(case.qkv, 32)
    assert attend is not None
    for row, start in enumerate(case.starts.tolist()):
        dense = case.own[:, row : row + 1, :, start:37].clone()
        alone = case.qkv[row : row + 1]
        columns, begin = torch.tensor([37 - start]), torch.tensor([0])
        assert torch.equal(attend(alone, dense, columns, case.scale, starts_p=begin)[0], every[row])
    case.qkv[1, 2, 5] = math.nan
    case.scale = 200.0  # scores of hundreds overflow nothing
    wrong = case.attended(CachedAttention.ready)[0].view(3, 6, 32).isnan()
    assert wrong[1, 2].all() and int(wrong.sum()) == 32


def test_sizes_and_types_that_attention_to_a_cache_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CachedAttention.ready(torch.zeros(2), 256) is not None
    assert CachedAttention.ready(torch.zeros(2), 257) is None
    assert CachedAttention.ready(torch.zeros(2, dtype=torch.float64), 16) is None
    case = Cache(torch.float32, samples=2)
    before, _ = case.attended(CachedAttention.ready)
    monkeypatch.setattr(cached_attention, "COLUMNS", 16)  # several blocks of each part
    torch.testing.assert_close(case.attended(CachedAttention.ready)[0], before)
    nothing = case.qkv[:0]
    attend = CachedAttention.ready(nothing, 32)
    assert attend is not None
    none = attend(nothing, case.own[:, :0], torch.tensor([37]), 1.0, starts_p=case.starts[:0])
    assert none.shape == (0, 6 * 32)


@pytest.mark.parametrize("heads", [(3, 1), (17, 16), (32, 4)])
@pytest.mark.parametrize("turned", [48, 64])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"), [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)]
)
def test_heads_are_normalised_and_turned_as_by_two_operations(
    heads: tuple[int, int], turned: int, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    """As near to float64 as a norm and a rotation one after the other, where heads turn in whole and in part."""
    queries, keys = heads
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, queries + 2 * keys, 64, generator=generator).to(dtype)
    weights = [torch.randn(64, generator=generator).to(weight_dtype) for _ in range(2)]
    angles = torch.randn(5, turned // 2, generator=generator)
    incoming = torch.randn(x.shape, generator=generator).to(dtype)

    def tried(function: Any, of: Any) -> list[torch.Tensor]:
        given = [t.detach().to(of or t.dtype).requires_grad_() for t in (x, *weights)]
        out = function(*given, angles.cos(), angles.sin(), queries, 1e-5)
        return [out, *torch.autograd.grad(out, given, incoming.to(out.dtype))]

    ours, apart = tried(layers.norm_rotary_triton, None), tried(rotary.norm_rotary, None)
    exact = tried(references.norm_rotary, torch.float64)
    for got, other, want in zip(ours, apart, exact, strict=True):
        assert got.dtype == other.dtype
        assert (got.double() - want).norm() <= (other.double() - want).norm() + 2 * ROUNDING[dtype] * want.norm()


@pytest.mark.parametrize("width", [127, 128, 129])
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"), [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)]
)
def test_gated_norms_are_those_of_the_definition(width: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """In both directions, with a last program that has fewer rows."""
    generator = torch.Generator().manual_seed(0)
    x, gate, incoming = (torch.randn(33, width, generator=generator).to(dtype) for _ in range(3))
    weight = torch.randn(width, generator=generator).to(weight_dtype)
    ours = [t.detach().requires_grad_() for t in (x, gate, weight)]
    exact = [t.detach().double().requires_grad_() for t in (x, gate, weight)]
    got, want = layers.gated_norm_triton(*ours, 1e-5), references.gated_norm(*exact, 1e-5)
    gradients = torch.autograd.grad(got, ours, incoming), torch.autograd.grad(want, exact, incoming.double())
    for mine, true in zip((got, *gradients[0]), (want, *gradients[1]), strict=True):
        assert (mine.double() - true).norm() <= 3 * ROUNDING[dtype] * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [3, 70], ids=["joined", "apart"])
@pytest.mark.parametrize(
    ("rows", "width", "outputs"), [(127, 128, 129), (128, 129, 127), (129, 127, 1025), (1025, 33, 128), (5, 1025, 16)]
)
@pytest.mark.parametrize("dropping", [False, True])
def test_low_rank_layers_equal_float64_forward_and_backward(
    rows: int, width: int, outputs: int, rank: int, dtype: torch.dtype, dropping: bool
) -> None:
    """A layer with DoRA, one with an addition alone and one with nothing, with biases and a residual stream; and with
    dropout of both additions, of different numbers."""
    draw = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    sizes = (outputs, 7, 3)
    weight, bias = normal(sum(sizes), width) / width**0.5, normal(sum(sizes))
    leaves = {
        "x": normal(rows, width), "a": normal(rank, width) / width**0.5, "b": normal(outputs, rank) / rank**0.5,
        "m": normal(outputs).abs() + 0.5, "a2": normal(4, width), "b2": normal(7, 4), "base": normal(rows, sum(sizes)),
    }  # fmt: skip
    incoming, found, drops = normal(rows, sum(sizes)), [], list[Any]()
    for _ in "ab" if dropping else "":
        words = [torch.randint(-(2**31), 2**31, (n,), generator=draw).int() for n in (rows, width)]
        drops.append(Dropped(*words, -(2**30), 4 / 3, layers.keyed_dropout_triton))
    drops += [None] if dropping else []
    for compute, wide in ((low_rank_linear_triton, dtype), (references.low_rank_linear, torch.float64)):
        given = {name: leaf.to(dtype).to(wide).requires_grad_() for name, leaf in leaves.items()}
        additions = [(given["a"], given["b"], 1.5), (given["a2"], given["b2"], 0.5), None]
        fixed = (given["x"], weight.to(dtype).to(wide), bias.to(dtype).to(wide), sizes, additions)
        y = compute(*fixed, base_no=given["base"], magnitudes=(given["m"], None, None), dropped=drops)
        slopes = torch.autograd.grad(y, list(given.values()), incoming.to(dtype).to(wide))
        found.append({"y": y.detach(), **{f"d {name}": slope for name, slope in zip(given, slopes, strict=True)}})
    for name, exact in found[1].items():
        got = found[0][name]
        assert got.dtype == dtype, name
        assert float((got.double() - exact).norm() / exact.norm()) <= 8 * ROUNDING[dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [33, 64, 129])
@pytest.mark.parametrize("share", [-(2**30), 1])
def test_a_linear_layer_makes_the_mask_of_keyed_dropout_bit_for_bit(dtype: torch.dtype, size: int, share: int) -> None:
    """With A and B of ones on the diagonal its output and both gradients are numbers that the mask leaves, and the bias
    is added to all. Its words alone say which: `keyed_dropout` is not called."""
    draw = torch.Generator().manual_seed(size)
    words = [torch.randint(-(2**31), 2**31, (size,), generator=draw).int() for _ in "nd"]
    x, slopes = (torch.randn(size, size, generator=draw).to(dtype) for _ in "xy")
    bias, one = torch.full((size,), 4.0, dtype=dtype), torch.eye(size, dtype=dtype)

    def never(*given: Any) -> torch.Tensor:
        raise AssertionError("the mask was written out")

    def left(of: torch.Tensor) -> torch.Tensor:
        return dropout.keyed_dropout(of, *words, share, 1.0)

    leaves = [x.clone().requires_grad_(), one.clone().requires_grad_(), one.clone().requires_grad_()]
    group = torch.zeros(size, size, dtype=dtype), bias, (size,), [(leaves[1], leaves[2], 0.5)]
    y = low_rank_linear_triton(leaves[0], *group, dropped=[Dropped(*words, share, 2.0, never)])
    assert torch.equal(y, left(x) + 4.0)
    d_x, d_a, d_b = torch.autograd.grad(y, leaves, slopes, retain_graph=True)
    assert torch.equal(d_x, left(slopes))
    want = slopes.double().t() @ left(x).double()
    assert max((got.double() - want).norm() for got in (d_a, d_b)) <= 2 * ROUNDING[dtype] * want.norm()
    assert torch.equal(torch.autograd.grad(y, leaves[1], one)[0], left(x))


class Numbers(TorchDispatchMode):
    """The most numbers of a new tensor in float32."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.new_empty and out.dtype == torch.float32:
            self.most = max(self.most, out.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("rows", "rank", "width", "numbers"), [(3000, 5, 400, 3 * 5 * 128), (2500, 150, 130, 3 * 64 * 64)]
)
def test_partial_sums_of_a_factor_take_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, rank: int, width: int, numbers: int
) -> None:
    """Some columns after the others, and some directions where these are many: with the same bits."""
    draw = torch.Generator().manual_seed(2)
    d, x = (torch.randn(rows, n, generator=draw).to(dtype) for n in (rank, width))
    of = Dropped(*(torch.randint(-(2**31), 2**31, (n,), generator=draw).int() for n in x.shape), 0, 1.0)
    with Numbers() as free:
        at_once = MASKED.factor(d, x, of, torch.mm)
    assert free.most == 3 * rank * width
    monkeypatch.setattr(masked, "WORKSPACE", 4 * numbers)
    with Numbers() as bounded:
        assert torch.equal(MASKED.factor(d, x, of, torch.mm), at_once)
    assert bounded.most == numbers
    wanted = d.double().t() @ dropout.keyed_dropout(x, *of[:4]).double()
    assert (at_once.double() - wanted).norm() <= ROUNDING[dtype] * wanted.norm()


def spread(x: torch.Tensor, axis: int) -> torch.Tensor:
    """A copy whose numbers lie 2^30 apart along an axis of three; an offset of 32 bits leads to zeros before them."""
    not_reserved = 0x4000  # by Linux: only what is written to takes memory
    pages = mmap.mmap(-1, 2**33 + 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | not_reserved)
    strides = list(torch.empty([n for at, n in enumerate(x.shape) if at != axis]).stride())
    strides.insert(axis, 2**30)
    return torch.frombuffer(pages, dtype=torch.float16)[2**31 :].as_strided(x.shape, strides).copy_(x)


def test_numbers_are_found_beyond_two_billion_others() -> None:
    draw = torch.Generator().manual_seed(3)
    qkv, own = (torch.randn(shape, generator=draw).half() for shape in ((1, 9, 16), (2, 1, 3, 4, 16)))
    attend, last, first = CachedAttention.ready(qkv, 16), torch.tensor([4]), torch.tensor([0])
    assert attend is not None
    far = attend(qkv, spread(own, 2), last, 0.25, starts_p=first)
    assert torch.equal(far, attend(qkv, own, last, 0.25, starts_p=first))
    x, a, d = (torch.randn(shape, generator=draw).half() for shape in ((5, 3), (2, 3), (5, 2)))
    of = Dropped(*(torch.randint(-(2**31), 2**31, (n,), generator=draw).int() for n in x.shape), 0, 1.0)
    assert torch.equal(MASKED.narrow(spread(x, 1), of, a, torch.mm), MASKED.narrow(x, of, a, torch.mm))
    assert torch.equal(MASKED.factor(d, spread(x, 1), of, torch.mm), MASKED.factor(d, x, of, torch.mm))
