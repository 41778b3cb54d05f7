"""Rounded weights, their gradients, and what is left when training is over, with a quantizer of three levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import QuantizerBase, RecipeError
from finetooth_hooks.protocols import Stored
from finetooth_qat.rounding import RoundedLinear, converted, round_weights
from finetooth_torchshared.quantised import DequantisingLinear
from torch import nn


class Ternary(DequantisingLinear):
    """-1, 0 and 1."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        self.register_buffer("codes", module.weight.detach().round().clamp(-1, 1).to(torch.int8))

    def dequantised(self, dtype: Any) -> Any:
        return self.codes.to(dtype)


class ToTernary(QuantizerBase):
    stored = Stored("ternary", 1.0)

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        return path != "1"

    def linear(self, module: Any, *, device: str) -> Any:
        return Ternary(module).to(device)


def model() -> Any:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    round_weights(made, ToTernary())
    return made


def test_gradients_are_those_of_the_rounded_weights_handed_through() -> None:
    made = model()
    with torch.no_grad():
        made[0].weight.mul_(4)
    assert type(made[0]) is RoundedLinear and type(made[1]) is nn.Linear
    rows, slopes = torch.randn(5, 8, requires_grad=True), torch.randn(5, 6)
    made[0](rows).backward(slopes)
    x, dy = rows.detach().double().numpy(), slopes.double().numpy()
    q = np.clip(np.round(made[0].weight.detach().double().numpy()), -1, 1)
    np.testing.assert_allclose(made[0].weight.grad.numpy(), dy.T @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rows.grad.numpy(), dy @ q, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made[0].bias.grad.numpy(), dy.sum(0), rtol=1e-5, atol=1e-5)


def test_converted_it_computes_the_same_with_ordinary_modules() -> None:
    made = model()
    rows, names = torch.randn(5, 8), list(made.state_dict())
    before, weight = made(rows), made[0].weight.detach().clone()
    with converted(made) as moved:
        assert type(made[0]) is nn.Linear and list(made.state_dict()) == names
        torch.testing.assert_close(made(rows), before)
        wanted = (weight.round().clamp(-1, 1) - weight).norm() / weight.norm()
        assert moved == pytest.approx(float(wanted), rel=1e-5)
    assert type(made[0]) is RoundedLinear and torch.equal(made[0].weight, weight)


def test_a_quantizer_that_takes_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="ternary takes no linear module"):
        round_weights(nn.Sequential(nn.Identity(), nn.Linear(2, 2)), ToTernary())
