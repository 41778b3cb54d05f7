"""Sums and roundings across precisions, against torch's own, which casts first."""

from __future__ import annotations

import pytest
import torch
from finetooth_kernels import sums

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
pytestmark = pytest.mark.usefixtures("implementation")


def numbers(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 3).to(dtype).view(-1, 7)


@pytest.mark.parametrize("count", [0, 7, 70_007])
@pytest.mark.parametrize("part", DTYPES)
@pytest.mark.parametrize("total", [torch.float32, torch.float64])
def test_adding_is_casting_and_adding(total: torch.dtype, part: torch.dtype, count: int) -> None:
    before, added = numbers(count, total, 0), numbers(count, part, 1)
    into = before.clone()
    assert sums.add_(into, added) is into
    assert torch.equal(into, before + added.to(total))


@pytest.mark.parametrize("factor", [None, -0.3])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16])
def test_rounding_happens_once(
    of: torch.dtype, to: torch.dtype, large: bool, factor: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(sums, "LARGE", 1)
    x = numbers(70_007, of, 2)
    got = sums.scaled(x, to, None if factor is None else torch.tensor(factor))
    exact = x.double() if factor is None else x.double() * torch.tensor(factor).double()
    step = torch.finfo(to if torch.finfo(to).eps > 2**-23 else torch.float32).eps
    assert got.dtype == to and got.shape == x.shape and got.is_contiguous()
    # half a step, and the product's own rounding to the precision in which it is computed
    assert bool(((got.double() - exact).abs() <= step * (0.5 + 2**-10) * exact.abs() + 1e-7).all())


def test_what_is_no_number_stays_none() -> None:
    strange = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40])
    assert torch.equal(sums.scaled(strange, torch.bfloat16).isnan(), strange.isnan())
    assert sums.scaled(strange, torch.bfloat16)[1:3].tolist() == [torch.inf, -torch.inf]
    assert str(sums.scaled(strange.bfloat16(), torch.float32)[3].item()) == "-0.0"


def test_shapes_and_strides_that_the_kernel_does_not_take() -> None:
    total, part = torch.zeros(6, 4), torch.arange(24.0).view(4, 6).t().bfloat16()
    assert torch.equal(sums.add_(total, part), part.float())
    assert torch.equal(sums.add_(torch.zeros(2, 3), torch.ones(3)), torch.ones(2, 3))
    assert torch.equal(sums.scaled(part, torch.float32), part.float())
