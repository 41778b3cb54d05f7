"""`apply_qat` and `convert_qat` in a training loop of one's own, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_qat.model import apply_qat, convert_qat
from finetooth_torchshared.grouped_linear import GroupedLinear
from torch import nn


def plain() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(129, 33), nn.Tanh(), nn.Linear(33, 1, bias=False))


def rounded(weight: Any, bits: int) -> Any:
    """By the definition, in float64: a scale for each output, the greatest weight at the greatest integer."""
    most = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(1, keepdims=True) / most
    return np.round(weight / scale) * scale


@pytest.mark.parametrize("bits", [4, 8])
def test_it_trains_through_rounded_weights_and_stores_what_it_trained(bits: Any) -> None:
    model = apply_qat(plain(), bits)
    x = torch.randn(127, 129)
    y = x[:, :3].sum(1, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    trained = model(x).detach()
    first, second = (rounded(module.weight.detach().double().numpy(), bits) for module in (model[0], model[2]))
    wanted = np.tanh(x.double().numpy() @ first.T + model[0].bias.detach().double().numpy()) @ second.T
    np.testing.assert_allclose(trained.numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert convert_qat(model, bits) is model and isinstance(model[0], GroupedLinear)
    np.testing.assert_allclose(model(x).numpy(), trained.numpy(), rtol=1e-5, atol=1e-5)
    stored = model.state_dict()
    assert stored["0.codes"].dtype == torch.uint8 and stored["0.codes"].numel() == 33 * (129 if bits == 8 else 65)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: apply_qat(plain(), 3), "bits: 3 is neither 4 nor 8"),  # type: ignore[arg-type]
        (lambda: apply_qat(nn.Sequential(nn.Tanh())), "model: it has no linear module but its head"),
        (lambda: convert_qat(plain()), "model: apply_qat did not round it"),
        (lambda: convert_qat(apply_qat(plain(), 4)), "bits: 0 was trained for 4 bits, not for 8"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        call()
