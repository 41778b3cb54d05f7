"""torchao's products in 8 bits, emulated on a CPU, against the operation's reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("torchao", reason="needs torchao: pip install finetooth[torchao]")

from finetooth_kernels.operations import OPERATIONS
from finetooth_torchao.float8 import fp8_linear, missing


def drawn(*shape: int, seed: int, dtype: Any) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", [127, 128, 129, 1025])
def test_values_and_gradients_are_the_references(inner: int, dtype: Any) -> None:
    shapes = ((33, inner), (17, inner), (17,), (33, 17))
    given = [drawn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]
    exact = [of.detach().double().requires_grad_() for of in given]
    out, wanted = fp8_linear(*given), OPERATIONS["fp8_linear"].reference(*exact)
    slopes = drawn(33, 17, seed=4, dtype=dtype).detach()
    ours, theirs = torch.autograd.grad(out, given, slopes), torch.autograd.grad(wanted, exact, slopes.double())
    for got, want in ((out, wanted), *zip(ours, theirs, strict=True)):
        assert got.dtype == dtype
        assert ((got.double() - want).norm() / want.norm()).item() < (2e-3 if dtype == torch.float32 else 1e-2)


def test_it_serves_no_cpu() -> None:
    assert missing("fp8_linear", "cpu", "bf16") == "cpu cannot multiply in 8-bit floating point"
    assert fp8_linear(torch.empty(0, 4), torch.ones(3, 4)).shape == (0, 3)
