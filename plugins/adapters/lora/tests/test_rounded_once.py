"""In half precision a small addition comes through on average, over plain and stored weights; elsewhere peft's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.rounded_once import RoundedOnce
from finetooth_torchshared.quantised import DequantisingLinear
from peft.tuners.lora import Linear
from torch import nn


class Halved(DequantisingLinear):
    """Stores a weight as bf16."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        self.register_buffer("codes", module.weight.detach().bfloat16())

    def dequantised(self, dtype: Any) -> Any:
        return self.codes.to(dtype)


def layer(
    tiny: Any, dtype: torch.dtype, *, stored: bool, bias: bool = False, small: float = 1e-4, **options: Any
) -> Any:
    """A layer of a model with an adapter; its product is about 1, and B about `small`."""
    made = tiny()
    inputs, outputs = 256, 192
    plain = nn.Linear(inputs, outputs, bias=bias)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
    base = Halved(plain) if stored else plain.to(dtype)
    made.model.model.layers[0].mlp.up_proj = base
    adapted = LoraAdapter(LoraOptions(rank=8, targets=["layers.0.mlp.up_proj"], **options))
    model = adapted.apply(made.model, made.facts, np.random.default_rng(0))
    found = model.model.layers[0].mlp.up_proj
    b = found.lora_B["default"].weight
    with torch.no_grad():
        b.copy_(torch.randn(b.shape, generator=generator) * small)
    for part in (found.lora_A, found.lora_B):
        part.to(dtype)  # as the engine computes with them
    return found


def share(module: Any, rows: torch.Tensor) -> float:
    """How much of the addition is in what comes out: 1 is all of it, on average."""
    with torch.no_grad():
        added = module.lora_B["default"](module.lora_A["default"](rows)).double() * module.scaling["default"]
        moved = module(rows).double() - module.base_layer(rows).double()
    return float((moved * added).sum() / (added**2).sum())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stored", [False, True], ids=["plain", "stored"])
def test_a_small_addition_comes_through_in_bf16(tiny: Any, stored: bool, bias: bool) -> None:
    module = layer(tiny, torch.bfloat16, stored=stored, bias=bias)
    rows = torch.randn(4, 1000, 256, generator=torch.Generator().manual_seed(2)).bfloat16()  # the share is +- 0.02
    assert type(module) is RoundedOnce and share(module, rows) == pytest.approx(1, abs=0.1)
    module.__class__ = Linear  # peft's own order loses a part of it
    assert share(module, rows) < 0.8


@pytest.mark.parametrize("stored", [False, True], ids=["plain", "stored"])
def test_gradients_are_those_of_the_sum(tiny: Any, stored: bool) -> None:
    module = layer(tiny, torch.bfloat16, stored=stored, bias=True, small=0.1)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 256, generator=generator).bfloat16().requires_grad_()
    slopes = torch.randn(64, 192, generator=generator).bfloat16()
    module(rows).backward(slopes)
    base: Any = module.base_layer
    w = (base.dequantised(torch.float64) if stored else base.weight.double()).detach().numpy()
    a, b = (part["default"].weight.detach().double().numpy() for part in (module.lora_A, module.lora_B))
    x, dy, scale = rows.detach().double().numpy(), slopes.double().numpy(), module.scaling["default"]
    wanted = {"x": dy @ w + scale * dy @ b @ a, "a": (scale * dy @ b).T @ x, "b": scale * dy.T @ (x @ a.T)}
    found = {"x": rows.grad, "a": module.lora_A["default"].weight.grad, "b": module.lora_B["default"].weight.grad}
    for name, gradient in found.items():
        off = np.abs(gradient.double().numpy() - wanted[name]).max() / np.abs(wanted[name]).max()
        assert off < 2e-2, name


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"dropout": 0.3}], ids=str)
def test_in_fp32_it_computes_as_peft(tiny: Any, options: dict[str, Any]) -> None:
    module = layer(tiny, torch.float32, stored=False, **options)
    rows = torch.randn(8, 256, generator=torch.Generator().manual_seed(2))
    found = []
    for kind in (RoundedOnce, Linear):
        module.__class__ = kind
        torch.manual_seed(0)
        found.append(module(rows))
    assert torch.equal(*found)
