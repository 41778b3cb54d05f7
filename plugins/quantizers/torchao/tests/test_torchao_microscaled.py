"""Products in MXFP8, emulated on a CPU, against the formats' specification in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("torchao", reason="needs torchao: pip install finetooth[torchao]")

from finetooth_torchao.microscaled import missing, mxfp8_linear


def rounded(t: Any) -> Any:
    """Rows in E4M3 times 2^ceil(log2(max / 448)) of each 32 numbers, as float64."""
    rows, inner = t.shape
    blocks = torch.nn.functional.pad(t.double(), (0, -inner % 32)).reshape(rows, -1, 32)
    scale = 2.0 ** (blocks.abs().amax(-1, keepdim=True) / 448).log2().ceil()
    scale[~scale.isfinite() | (scale == 0)] = 1.0
    eight = (blocks / scale).float().to(torch.float8_e4m3fn).double() * scale
    return eight.reshape(rows, -1)[:, :inner]


def drawn(*shape: int, seed: int, dtype: Any) -> Any:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (values * values.abs()).to(dtype).requires_grad_()  # squares: blocks whose greatest numbers differ


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", [127, 128, 129, 1025])
def test_values_and_gradients_are_the_specifications(inner: int, dtype: Any) -> None:
    x, weight, bias, base = given = [
        drawn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(((33, inner), (17, inner), (17,), (33, 17)))
    ]
    slopes = drawn(33, 17, seed=4, dtype=dtype).detach()
    out = mxfp8_linear(*given)
    wanted = [
        rounded(x.detach()) @ rounded(weight.detach()).T + bias.detach().double() + base.detach().double(),
        rounded(slopes) @ rounded(weight.detach().T).T,
        rounded(slopes.T) @ rounded(x.detach().T).T,
        slopes.double().sum(0),
        slopes.double(),
    ]
    for got, want in zip((out, *torch.autograd.grad(out, given, slopes)), wanted, strict=True):
        assert got.dtype == dtype
        assert ((got.double() - want).norm() / want.norm()).item() < (1e-6 if dtype == torch.float32 else 6e-3)


def test_a_row_depends_on_no_other() -> None:
    """A greater row in the batch changes no bit of the others' outputs and gradients."""
    x, weight = drawn(33, 64, seed=0, dtype=torch.float32), drawn(17, 64, seed=1, dtype=torch.float32)
    greater = torch.cat([x[:32], 1e3 * x[32:]]).detach().requires_grad_()
    (first, second), (d_first, d_second) = zip(
        *((y, torch.autograd.grad(y.sum(), of)[0]) for of in (x, greater) for y in [mxfp8_linear(of, weight)]),
        strict=True,
    )
    assert torch.equal(first[:32], second[:32]) and torch.equal(d_first[:32], d_second[:32])


def test_a_frozen_weight_keeps_no_input() -> None:
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        mxfp8_linear(torch.ones(32, 64, requires_grad=True), torch.ones(16, 64))
    assert kept == [(16, 64)]


def test_it_serves_blackwell_alone() -> None:
    assert missing("fp8_linear", "cpu", "bf16").startswith("cpu cannot multiply in MXFP8")
    assert mxfp8_linear(torch.empty(0, 4), torch.ones(3, 4)).shape == (0, 3)
