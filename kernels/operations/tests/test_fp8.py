"""`fp8_linear` against NumPy: the levels of both formats by their definition, products, gradients, awkward sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kernels import fp8
from finetooth_kernels.fp8 import E4M3, E5M2, Rounded, fp8_linear, fp8_product, rounded, scaled_product

SIZES = (1, 127, 128, 129, 1025)


def drawn(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def levels(exponent_bits: int, mantissa_bits: int, greatest: float) -> Any:
    """All numbers of a format, by sign, exponent and mantissa: Micikevicius et al., 2022, section 3."""
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    small = [m / steps * 2.0 ** (1 - bias) for m in range(steps)]
    normal = [(1 + m / steps) * 2.0 ** (e - bias) for e in range(1, 2**exponent_bits) for m in range(steps)]
    positive = np.array([number for number in [*small, *normal] if number <= greatest])
    return np.unique(np.concatenate([-positive, positive]))


FORMATS = {E4M3: levels(4, 3, 448.0), E5M2: levels(5, 2, 57344.0)}


def in_float64(t: Any, dtype: Any) -> tuple[Any, Any]:
    """The nearest levels of a tensor, the even one of two equally near ones, after it was scaled to the greatest, times
    the scale; and half of the way between the two levels around each number."""
    t, grid = t.detach().float().numpy(), FORMATS[dtype]
    scale = np.abs(t).max() / np.float32(grid[-1]) if t.size and np.abs(t).max() else np.float32(1)
    scaled = (t / scale).astype(np.float64)
    above = np.clip(np.searchsorted(grid, scaled), 1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    down, even = scaled - low - (high - scaled), (above - 1 - len(grid) // 2) % 2 == 0
    near = np.where((down < 0) | ((down == 0) & even), low, high)
    return near * float(scale), (high - low) / 2 * float(scale)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("size", SIZES)
def test_a_number_is_rounded_to_its_nearest_level(size: int, dtype: Any) -> None:
    t = drawn(size, 129) * torch.logspace(-9, 3, 129)
    values, scale = rounded(t, dtype)
    wanted, half = in_float64(t, dtype)
    got = values.double().numpy() * float(scale)
    greatest = float(t.abs().max())
    assert values.dtype == dtype and values.float().abs().max() == torch.finfo(dtype).max
    assert (np.abs(got - t.double().numpy()) <= half * (1 + 1e-4) + 1e-6 * greatest / torch.finfo(dtype).max).all()
    assert (np.abs(got - wanted) <= 1e-6 * greatest).all()


def test_zeros_and_nothing_have_the_scale_1() -> None:
    for t in (torch.zeros(3, 4), torch.empty(0, 4)):
        values, scale = rounded(t, E4M3)
        assert scale == 1 and not values.float().any()
    assert fp8_linear(torch.empty(0, 4), drawn(3, 4)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", SIZES)
def test_products_and_gradients_are_those_of_the_rounded_numbers(inner: int, dtype: Any) -> None:
    x, weight = drawn(127, inner, dtype=dtype), drawn(129, inner, seed=1, dtype=dtype)
    bias, base = drawn(129, seed=2, dtype=dtype), drawn(127, 129, seed=3, dtype=dtype)
    slopes = drawn(127, 129, seed=4, dtype=dtype)
    leaves = [of.clone().requires_grad_() for of in (x, weight, bias, base)]
    out = fp8_linear(*leaves)
    out.backward(slopes)
    x8, w8, g8 = (in_float64(*of)[0] for of in ((x, E4M3), (weight, E4M3), (slopes, E5M2)))
    plain = slopes.double().numpy()
    wanted = {
        "value": (out, x8 @ w8.T + bias.double().numpy() + base.double().numpy()),
        "input": (leaves[0].grad, g8 @ w8), "weight": (leaves[1].grad, g8.T @ x8),
        "bias": (leaves[2].grad, plain.sum(0)), "base": (leaves[3].grad, plain),
    }  # fmt: skip
    for name, (got, want) in wanted.items():
        off = np.linalg.norm(got.detach().double().numpy() - want) / np.linalg.norm(want)
        assert got.dtype == dtype and off < (2e-3 if dtype == torch.float32 else 6e-3), (name, off)
    exact = x.double().numpy() @ weight.double().numpy().T  # what 8 bits cost: 3 bits behind the point, twice
    off = np.linalg.norm(x8 @ w8.T - exact) / np.linalg.norm(exact)
    assert 0.01 < off < 0.06


@pytest.mark.parametrize(("rows", "inner", "columns"), [(127, 129, 33), (16, 32, 48), (1, 1025, 1)])
def test_the_devices_product_takes_the_same_operands(rows: int, inner: int, columns: int) -> None:
    """Torch has it on CPUs too, so that its layouts, padding and scales can be seen."""
    left, right = rounded(drawn(rows, inner), E5M2), rounded(drawn(columns, inner, seed=1), E4M3)
    turned = Rounded(right.values.t(), right.scale)
    torch.testing.assert_close(scaled_product(left, turned), fp8_product(left, turned), rtol=1e-5, atol=1e-4)


def test_a_frozen_weight_keeps_itself_and_its_scale() -> None:
    x, weight = drawn(64, 32).requires_grad_(), drawn(48, 32)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fp8_linear(x, weight)
    assert [tuple(t.shape) for t in kept] == [(48, 32), ()]
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fp8_linear(x, weight.requires_grad_())
    assert [t.dtype for t in kept] == [torch.float32, torch.float32, E4M3, torch.float32]  # the input in 8 bits


def test_which_devices_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    assert not fp8.multiplies_fp8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, able in (((8, 0), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert fp8.multiplies_fp8(device) is able
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for architecture, able in (("gfx942:sramecc+", False), ("gfx950", True), ("gfx1100", False), ("gfx1201", True)):
        card = type("Card", (), {"gcnArchName": architecture})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert fp8.multiplies_fp8(device) is able


def test_whoever_rounds_is_told_how_the_product_reads() -> None:
    """A weight is measured once for both passes; what a product reads column by column is asked for so."""
    asked: list[Any] = []

    def rounding(t: Any, dtype: Any, *, by_columns: bool = False, scale: Any = None) -> Rounded:
        asked.append((tuple(t.shape), dtype, by_columns, scale is not None))
        return rounded(t, dtype, by_columns=by_columns, scale=scale)

    x, weight = drawn(64, 32).requires_grad_(), drawn(48, 32).requires_grad_()
    found = fp8_linear(x, weight, rounding=rounding)
    found.square().sum().backward()
    x_again, weight_again = (t.detach().requires_grad_() for t in (x, weight))
    wanted = fp8_linear(x_again, weight_again)
    wanted.square().sum().backward()
    assert torch.equal(found, wanted)
    assert torch.equal(x.grad, x_again.grad) and torch.equal(weight.grad, weight_again.grad)
    assert asked == [
        ((64, 32), E4M3, False, False), ((48, 32), E4M3, False, False),
        ((64, 48), E5M2, False, False), ((48, 32), E4M3, True, True), ((64, 48), E5M2, True, True),
    ]  # fmt: skip
