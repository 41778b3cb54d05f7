"""Products with a packed weight against float64, for any number of rows, wherever rows lie."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from finetooth_kernels.references import packed_linear
from finetooth_kernels.runs import Run
from finetooth_native.few_rows import MOST_ROWS, FewRows
from torch import Tensor

pytestmark = pytest.mark.usefixtures("compiled")

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(weight: Tensor, bias: Tensor | None = None) -> FewRows:
    found = FewRows.pack(weight, bias)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("outputs", [1, 31, 32, 100])
@pytest.mark.parametrize("inputs", [2, 48, 334])
@pytest.mark.parametrize("more", [False, True])
def test_against_float64(dtype: torch.dtype, outputs: int, inputs: int, more: bool) -> None:
    weight, bias = normal(outputs, inputs, dtype=dtype, seed=1), normal(outputs, dtype=dtype, seed=2)
    linear = packed(weight, bias if more else None)
    for rows in (0, 1, 2, 11, 12, 13, 25, 37, MOST_ROWS, MOST_ROWS + 1):
        x = normal(rows, inputs + 3, dtype=dtype, seed=3)[:, 1 : inputs + 1]
        base = normal(rows, outputs + 5, dtype=dtype, seed=4)[:, 2 : outputs + 2] if more else None
        found = linear(x, base_no=base)
        terms = [x.double().numpy() @ weight.double().numpy().T]
        sizes = np.abs(x.double().numpy()) @ np.abs(weight.double().numpy()).T
        if more:
            assert base is not None
            terms += [bias.double().numpy(), base.double().numpy()]
            sizes = sizes + np.abs(terms[1]) + np.abs(terms[2])
        exact = sum(terms)
        bound = inputs * 2.0**-24 * sizes + 2 * ROUNDING[dtype] * np.abs(exact)
        assert found.shape == (rows, outputs) and found.is_contiguous() and found.dtype == dtype
        assert np.all(np.abs(found.double().numpy() - exact) <= bound + 1e-37), rows


@pytest.mark.parametrize("rows", [1, 13, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_two_products_and_what_they_are_added_to_are_rounded_once(dtype: torch.dtype, rows: int) -> None:
    """A float32 base makes a float32 result, with no rounding of the dtype of the weights at all."""
    first, second = normal(70, 96, dtype=dtype, seed=1), normal(70, 6, dtype=dtype, seed=2)
    x, h = normal(rows, 96, dtype=dtype, seed=3), normal(rows, 6, dtype=dtype, seed=4)
    base = normal(rows, 70, dtype=torch.float32, seed=5)
    found = packed(first)(x, base_no=base, more=(h, packed(second)))
    exact = x.double() @ first.double().t() + h.double() @ second.double().t() + base.double()
    assert found.dtype == torch.float32
    assert (found.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
    once = packed(first)(x, more=(h, packed(second))).double()
    product = exact - base.double()
    assert ((once - product).abs() <= 2 * ROUNDING[dtype] * product.abs() + 1e-4).all()


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_what_a_row_gets_does_not_depend_on_the_others_nor_on_threads(dtype: torch.dtype) -> None:
    linear = packed(normal(2000, 96, dtype=dtype, seed=1))
    x = normal(MOST_ROWS, 96, dtype=dtype, seed=2)
    every = linear(x)
    for rows in (1, 5, 12, 33):
        assert torch.equal(linear(x[:rows]), every[:rows])
        assert torch.equal(linear(x[-rows:]), every[-rows:])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(linear(x), every)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_rows_of_several_adapters_get_what_they_get_alone(dtype: torch.dtype) -> None:
    """Bit for bit, whatever the ranks of the others, which may be no numbers; and it is what the definition says."""
    drawn = np.random.default_rng(4)
    weight, bias = normal(70, 96, dtype=dtype, seed=1), normal(70, dtype=dtype, seed=2)
    base, shared = packed(weight, bias), packed(weight[:0])
    ranks = (2, 16, 66, 8)
    matrices = [(normal(r, 96, dtype=dtype, seed=r), normal(70, r, dtype=dtype, seed=r + 1)) for r in ranks]
    matrices[3][1][5] = float("nan")
    pairs = [(packed(a), packed(b)) for a, b in matrices]
    for rows in (1, 7, 40, MOST_ROWS, MOST_ROWS + 1, 150, 2 * MOST_ROWS):
        x, added = normal(rows, 96, dtype=dtype, seed=rows), normal(rows, 70, dtype=torch.float32, seed=rows + 1)
        cuts = sorted({0, rows, *(int(n) for n in drawn.integers(0, rows, 6))})
        which = [(i, j, int(drawn.integers(-1, 4))) for i, j in pairwise(cuts)]
        if rows == 150:
            which = [(0, 3, 1), (3, 100, 2), (100, 101, -1), (101, 150, 3)]
        if rows > MOST_ROWS + 1:
            which = [(0, 9, 1), (9, MOST_ROWS + 20, 2), (MOST_ROWS + 20, rows, 0)]
        down = [Run(i, j, pairs[n][0]) for i, j, n in which if n >= 0]
        up = [Run(i, j, pairs[n][1]) for i, j, n in which if n >= 0]
        found = base(x, base_no=added, own=(shared(x, own=(x, down)), up))
        for i, j, n in which:
            more = None if n < 0 else (pairs[n][0](x[i:j]), pairs[n][1])
            alone = base(x[i:j], base_no=added[i:j], more=more)
            torch.testing.assert_close(found[i:j], alone, rtol=0, atol=0, equal_nan=True)
            assert n == 3 or bool(found[i:j].isfinite().all()), "another adapter's numbers are another's"
        plain, nothing = packed_linear(weight, bias), packed_linear(weight[:0])
        referred = [(packed_linear(a), packed_linear(b)) for a, b in matrices]
        h = nothing(x, own=(x, [Run(i, j, referred[n][0]) for i, j, n in which if n >= 0]))
        exact = plain(x, base_no=added, own=(h, [Run(i, j, referred[n][1]) for i, j, n in which if n >= 0]))
        tolerance = 1e-4 if dtype == torch.float32 else 0.5
        torch.testing.assert_close(found, exact, rtol=tolerance / 5, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("inputs", [96, 1000])
def test_more_rows_than_it_takes_change_no_number(dtype: torch.dtype, inputs: int) -> None:
    """From MOST_ROWS + 1 on `mm` multiplies where it is compiled, with the same sums."""
    linear, down, up = (packed(normal(o, i, dtype=dtype, seed=o)) for o, i in ((70, inputs), (8, inputs), (70, 8)))
    x, base = (normal(2 * MOST_ROWS + 1, i, dtype=dtype, seed=i) for i in (inputs, 70))
    every = linear(x, base_no=base, more=(down(x), up))
    for rows in (slice(MOST_ROWS), slice(7, 2000), slice(2000, None)):
        assert torch.equal(every[rows], linear(x[rows], base_no=base[rows], more=(down(x[rows]), up)))


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_what_is_not_finite_comes_through_in_its_row_and_output_alone(dtype: torch.dtype) -> None:
    weight, x = normal(40, 8, dtype=dtype, seed=1), normal(3, 8, dtype=dtype, seed=2)
    x[1, 3] = float("nan")
    weight[39, 0] = float("inf")
    found = packed(weight)(x)
    assert found[1].isnan().all() and found[0, :39].isfinite().all() and found[2, :39].isfinite().all()
    assert not found[0, 39].isfinite()


def test_the_weight_is_of_the_time() -> None:
    weight, x = normal(6, 4, dtype=torch.float32, seed=1), normal(MOST_ROWS + 1, 4, dtype=torch.float32, seed=2)
    linear, expected = packed(weight), x @ weight.t()
    weight.zero_()
    for rows in (3, MOST_ROWS + 1):
        assert torch.allclose(linear(x[:rows]), expected[:rows], atol=1e-5)


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_a_weight_may_begin_anywhere_in_its_buffer(dtype: torch.dtype) -> None:
    buffer = torch.randn(64 * 32 + 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight, x = buffer[1:].view(64, 32), torch.ones(3, 32, dtype=dtype)
    apart, alone = FewRows.pack(weight), FewRows.pack(weight.clone())
    assert apart is not None and alone is not None and torch.equal(apart(x), alone(x))


def test_what_the_kernel_cannot_take_is_not_packed() -> None:
    assert FewRows.pack(torch.ones(4, 4, dtype=torch.float64)) is None
    assert FewRows.pack(torch.ones(4, 0)) is None
    with mock.patch("finetooth_native.library.Library.few_rows_layout", return_value=(32, 16, 2)):
        assert FewRows.pack(torch.ones(4, 3)) is None


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("outputs", [5, 16, 40, 96, 100])
def test_zeros_at_the_ends_of_inputs_are_not_kept_and_change_no_bit(dtype: torch.dtype, outputs: int) -> None:
    """As in B of several modules that are one matrix; a module whose B is all zeros among them."""
    weight = torch.zeros(outputs, 48, dtype=dtype)
    third = outputs // 3
    for part in (0, 2):
        rows, inputs = slice(part * third, (part + 1) * third), slice(16 * part, 16 * part + 16)
        weight[rows, inputs] = normal(third, 16, dtype=dtype, seed=part)
    x, base = normal(9, 48, dtype=dtype, seed=3), normal(9, outputs, dtype=dtype, seed=4)
    kept = packed(weight)
    with mock.patch("finetooth_native.packed_weight.NARROW", 0):
        whole = packed(weight)
    assert torch.equal(kept(x, base_no=base), whole(x, base_no=base))
    assert torch.equal(kept._packed.unpacked(), weight) and torch.equal(whole._packed.unpacked(), weight)
    if kept._packed.parts is not None:
        assert kept._packed.numbers.numel() < whole._packed.numbers.numel()
    nothing = packed(weight[:0])
    for start in (0, 4):  # as what some rows have beside nothing, and beside a product of all
        runs = [[Run(0, start, one), Run(start, 9, one)] for one in (kept, whole)]
        assert torch.equal(nothing(x, own=(x, runs[0])), nothing(x, own=(x, runs[1])))
        assert torch.equal(*(whole(x, base_no=base, own=(x, of)) for of in runs))
