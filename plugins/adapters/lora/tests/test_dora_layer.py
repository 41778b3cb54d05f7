"""DoRA's layer against peft's, with the weight looked at in pieces."""

from __future__ import annotations

import pytest
import torch
from finetooth_kernels import low_rank_linear
from finetooth_lora import dora
from peft.tuners.lora.dora import DoraLinearLayer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["beside the base", "instead of it"])
@pytest.mark.parametrize("piece", [1, 100, 1 << 18], ids=["a row", "some rows", "all"])
def test_outputs_and_slopes_are_pefts(
    piece: int, given: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setitem(low_rank_linear.PIECE, "cpu", piece)
    torch.manual_seed(0)
    base = torch.nn.Linear(24, 31, bias=bias).requires_grad_(False)
    a, b = torch.nn.Linear(24, 3, bias=False), torch.nn.Linear(3, 31, bias=False)
    x, found = torch.randn(2, 5, 24, requires_grad=True), []
    for layer in (DoraLinearLayer(False), dora.DoraLinear(False)):
        layer.weight = torch.nn.Parameter(base.weight.norm(dim=1) * torch.linspace(0.5, 2, 31))
        y = layer(x, lora_A=a, lora_B=b, scaling=1.5, base_layer=base, base_result=base(x) if given else None)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, a.weight, b.weight, layer.weight))))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
