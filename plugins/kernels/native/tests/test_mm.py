"""Products of several terms against float64: any strides, any sizes, rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetooth_native import build as native
from finetooth_native.operations import low_rank_linear, mm, rms_norm, sums_wide
from torch import Tensor

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}
SIZES = [
    (1, 1, 1),
    (3, 7, 33),
    (12, 64, 32),
    (100, 33, 70),
    (37, 130, 257),
    (25, 5001, 40),
    (131, 801, 70),
    (70, 1024, 96),
    (100, 64, 30),
]


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def laid_out(x: Tensor, how: str) -> Tensor:
    """The same matrix, its rows or its columns next to each other, or each with room behind it."""
    if how == "columns":
        return x.t().contiguous().t()
    if how == "apart":
        wider = x.new_full((x.shape[0], x.shape[1] + 3), float("nan"))
        wider[:, : x.shape[1]] = x
        return wider[:, : x.shape[1]]
    return x


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("left", ["rows", "columns", "apart"])
@pytest.mark.parametrize("right", ["rows", "columns", "apart"])
def test_against_float64(dtype: torch.dtype, sizes: tuple[int, int, int], left: str, right: str) -> None:
    rows, inputs, outputs = sizes
    x, w = normal(rows, inputs, dtype=dtype, seed=1), normal(inputs, outputs, dtype=dtype, seed=2)
    found = mm(laid_out(x, left), laid_out(w, right))
    exact, sums = x.double() @ w.double(), x.double().abs() @ w.double().abs()
    bound = (
        inputs * ROUNDING[torch.float32 if dtype == torch.bfloat16 else dtype] * sums + ROUNDING[dtype] * exact.abs()
    )
    assert found.dtype == dtype and found.is_contiguous()
    assert ((found.double() - exact).abs() <= bound + 1e-37).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("base", [None, "same", "wide"])
def test_all_terms(dtype: torch.dtype, sizes: tuple[int, int, int], base: str | None) -> None:
    rows, inputs, outputs = sizes
    x, w = normal(rows, inputs, dtype=dtype, seed=1), normal(inputs, outputs, dtype=dtype, seed=2)
    h, b = normal(rows, 5, dtype=dtype, seed=3), normal(outputs, 5, dtype=dtype, seed=4).t()
    bias = normal(outputs, dtype=dtype, seed=5)
    wide = torch.float32 if base == "wide" else dtype
    start = None if base is None else laid_out(normal(rows, outputs, dtype=wide, seed=6), "apart")
    found = mm(x, w, more=(h, b), bias_o=bias, base_no=start)
    exact = x.double() @ w.double() + h.double() @ b.double() + bias.double()
    sizes_of = x.double().abs() @ w.double().abs() + h.double().abs() @ b.double().abs() + bias.double().abs()
    if start is not None:
        exact, sizes_of = exact + start.double(), sizes_of + start.double().abs()
    assert found.dtype == wide
    rounding = ROUNDING[wide] * exact.abs() if sums_wide(x, w) else 3 * ROUNDING[dtype] * sizes_of
    bound = (inputs + 8) * ROUNDING[torch.float32] * sizes_of + rounding
    assert ((found.double() - exact).abs() <= bound).all()


def compiled_for(dtype: torch.dtype) -> None:
    if not sums_wide(torch.ones(2, 2, dtype=dtype)):
        pytest.skip(f"no compiled products of {dtype} here: {native.available().reason}")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("sizes", [(200, 5000, 100), (1061, 700, 70), (1061, 5000, 20)])
def test_what_a_row_gets_does_not_depend_on_the_others_nor_on_threads(sizes: tuple[int, int, int]) -> None:
    compiled_for(torch.bfloat16)
    rows_, inputs, outputs = sizes
    x, w = normal(rows_, inputs, dtype=torch.bfloat16, seed=1), normal(inputs, outputs, dtype=torch.bfloat16, seed=2)
    every = mm(x, w)
    for rows in (1, 5, 12, 100):
        assert torch.equal(mm(x[:rows], w), every[:rows]) and torch.equal(mm(x[-rows:], w), every[-rows:])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 6, 7):
            torch.set_num_threads(threads)
            assert torch.equal(mm(x, w), every)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("sizes", [(200, 5000, 100), (1061, 700, 70), (64, 96, 64), (5000, 900, 1000), (33, 801, 20)])
def test_left_factors_in_columns_give_the_same_numbers(sizes: tuple[int, int, int]) -> None:
    rows, inputs, outputs = sizes
    x = normal(rows, 2 * inputs, dtype=torch.bfloat16, seed=1)[:, :inputs]
    w = normal(inputs, outputs, dtype=torch.bfloat16, seed=2)
    among_others = normal(inputs, rows + 5, dtype=torch.bfloat16, seed=3)
    among_others[:, 3 : rows + 3] = x.t()
    turned = among_others[:, 3 : rows + 3].t()
    if not sums_wide(turned, w):
        pytest.skip("left factors in columns are torch's work here")
    base = normal(rows, outputs, dtype=torch.float32, seed=4)
    assert torch.equal(mm(turned, w), mm(x, w))
    assert torch.equal(mm(turned, w, base_no=base), mm(x, w, base_no=base))


@pytest.mark.usefixtures("compiled")
def test_what_is_not_finite_comes_through_in_its_row_and_output_alone() -> None:
    compiled_for(torch.bfloat16)
    x, w = normal(30, 9, dtype=torch.bfloat16, seed=1), normal(9, 40, dtype=torch.bfloat16, seed=2)
    x[1, 8], w[0, 39] = float("nan"), float("inf")
    found = mm(x, w)
    assert found[1].isnan().all() and not found[0, 39].isfinite()
    assert found[0, :39].isfinite().all() and found[2:, :39].isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_results_take_the_place_of_the_base_wherever_it_lies() -> None:
    compiled_for(torch.bfloat16)
    x, w = normal(70, 48, dtype=torch.bfloat16, seed=1), normal(48, 65, dtype=torch.bfloat16, seed=2)
    room = normal(70 * 65 + 1, dtype=torch.float32, seed=3)
    base = room[1:].view(70, 65)  # no row of it begins where a register's worth of numbers would
    exact = x.double() @ w.double() + base.double()
    first = room[0].clone()
    assert mm(x, w, base_no=base, out=base).data_ptr() == base.data_ptr()
    assert (base.double() - exact).abs().max() <= 1e-5 * exact.abs().max() and room[0] == first


@pytest.mark.usefixtures("compiled")
def test_the_smallest_numbers_are_kept_in_every_column() -> None:
    compiled_for(torch.bfloat16)
    base = torch.full((3, 40), 1e-39, dtype=torch.bfloat16)
    assert torch.equal(mm(torch.zeros_like(base[:, :4]), torch.zeros_like(base).repeat(2, 1)[:4], base_no=base), base)


@pytest.mark.usefixtures("compiled")
def test_a_small_addition_is_not_lost_beside_a_large_product() -> None:
    """In bfloat16 numbers about 1 are 2^-7 apart. Adding 2^-11 to one that was rounded does nothing at all; rounded
    with the sum, it moves the mean by what it is."""
    compiled_for(torch.bfloat16)
    x, w = normal(512, 64, dtype=torch.bfloat16, seed=1), normal(96, 64, dtype=torch.bfloat16, seed=2)
    x, w = x.abs(), w.abs() / 32
    a, b = torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(96, 2, dtype=torch.bfloat16)
    x[:, 0] = 1.0
    a[:, 0], b[:, 0] = 1.0, 2.0**-11
    plain = low_rank_linear(x, w, None, [96], [None]).double()
    moved = (low_rank_linear(x, w, None, [96], [(a, b, 1.0)]).double() - plain).mean()
    assert plain.mean() > 0.5
    assert abs(float(moved) / 2.0**-11 - 1) < 0.1
    rounded = (plain.bfloat16() + (x @ a.t() @ b.t())).double() - plain
    assert float(rounded.mean()) < 0.3 * 2.0**-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_what_is_added_to_a_base(dtype: torch.dtype) -> None:
    """The base's gradient is the result's, untouched; the layers' are as without it."""
    x, w = normal(9, 6, dtype=dtype, seed=1), normal(7, 6, dtype=dtype, seed=2)
    a, b = normal(3, 6, dtype=dtype, seed=3), normal(7, 3, dtype=dtype, seed=4)
    base, grad = normal(9, 7, dtype=torch.float32, seed=5), normal(9, 7, dtype=torch.float32, seed=6)
    inputs = [part.requires_grad_() for part in (x, a, b, base)]
    y = low_rank_linear(x, w, None, [7], [(a, b, 0.5)], base_no=base)
    d_x, d_a, d_b, d_base = torch.autograd.grad(y, inputs, grad)
    assert y.dtype == d_base.dtype == torch.float32 and torch.equal(d_base, grad)
    without = low_rank_linear(x, w, None, [7], [(a, b, 0.5)])
    for found, expected in zip((d_x, d_a, d_b), torch.autograd.grad(without, inputs[:3], grad.to(dtype)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("compiled")
def test_a_profiler_sees_kernels_by_name_and_products_with_their_shape() -> None:
    compiled_for(torch.bfloat16)
    x, w = normal(3, 4, dtype=torch.bfloat16, seed=1), normal(4, 5, dtype=torch.bfloat16, seed=2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        mm(x, w)
        rms_norm(x, w[:, 0].contiguous(), 1e-5)
    names = {event.name for event in recorded.events() or ()}
    assert {"finetooth::mm 3 x 4 x 5", "finetooth::rms_norm"} <= names


def test_nothing_of_no_size() -> None:
    for rows, inputs, outputs in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        found = mm(torch.ones(rows, inputs), torch.ones(inputs, outputs))
        assert found.shape == (rows, outputs) and np.all(found.numpy() == 0)


@pytest.mark.parametrize("columns", [49_152, 49_168, 49_157])
def test_results_that_are_larger_than_the_caches(compiled: native.Library, columns: int) -> None:
    """They are written past the caches where their rows lie so that it can be done."""
    rows, inner = 12 * 2**20 // columns + 9, 6
    generator = torch.Generator().manual_seed(0)
    left = torch.randn((rows, inner), generator=generator).bfloat16()
    right = torch.randn((inner, columns), generator=generator).bfloat16()
    bias, base = torch.randn(columns, generator=generator).bfloat16(), torch.ones(rows, columns)
    out = torch.full((rows, columns), torch.nan)
    compiled.mm(left, right, bias_o=bias, base_no=base, out=out)
    expected = left.float() @ right.float() + bias.float() + base
    assert out.numel() * 4 > 48 * 2**20
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-5)
