"""Quantised tensors against NumPy: levels, exact products, layer norm, and sizes around powers of two."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import Kernel, Serves
from finetooth_hooks.protocols import Kernel as Built
from finetooth_kernels import integers
from finetooth_kernels.integers import (
    dequantize,
    fbgemm,
    qgemm,
    quantize_per_channel,
    quantize_per_tensor,
    quantized_layernorm,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

SIZES = (1, 127, 128, 129, 1025)


def numbers(*shape: int, seed: int = 0, far: float = 0.0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + far


def wide(tensor: Any) -> Any:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_a_number_is_stored_as_its_nearest_level(size: int, bits: int, symmetric: bool) -> None:
    t = numbers(size, 3, far=0.5)
    for q, scale, zero_point in (
        quantize_per_tensor(t, bits, symmetric=symmetric), quantize_per_channel(t, bits, symmetric=symmetric),
        quantize_per_channel(t, bits, axis=-1, symmetric=symmetric),
    ):  # fmt: skip
        least = -(2 ** (bits - 1)) + symmetric
        levels = (np.arange(least, 2 ** (bits - 1))[:, None, None] - wide(zero_point)) * wide(scale)
        nearest = np.abs(levels - wide(t)).min(0)
        kept = np.abs(wide(dequantize(q, scale, zero_point)) - wide(t))
        assert q.dtype == torch.int8 and zero_point.shape == scale.shape
        assert (kept <= nearest + 1e-4 * wide(scale)).all()  # of two equally near levels either may be taken
        assert (kept <= wide(scale) * (0.5 if symmetric else 1.0) + 1e-6).all()


def test_the_greatest_number_of_a_channel_sets_its_scale() -> None:
    t = torch.tensor([[1.0, -2.0], [0.25, 0.5], [0.0, 0.0]])
    q, scale, zero_point = quantize_per_channel(t, 8)
    assert scale.flatten().tolist() == pytest.approx([2 / 127, 0.5 / 127, 1.0])
    assert q.tolist() == [[64, -127], [64, 127], [0, 0]] and not zero_point.any()
    assert quantize_per_tensor(t.double()).scale.dtype == torch.float64
    assert quantize_per_tensor(t.bfloat16()).scale.dtype == torch.float32
    for narrow in (torch.float8_e4m3fn, torch.float8_e5m2):  # which torch does not compare
        assert quantize_per_channel(t.to(narrow)).q.tolist() == q.tolist()
    assert quantize_per_channel(torch.empty(3, 0)).q.shape == (3, 0) and quantize_per_tensor(torch.empty(0)).scale == 1


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_zero_stays_zero_and_quantising_again_changes_nothing(data: Any) -> None:
    values = data.draw(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9))
    symmetric, bits = data.draw(st.booleans()), data.draw(st.integers(2, 8))
    t = torch.tensor([0.0, *values])
    stored = quantize_per_tensor(t, bits, symmetric=symmetric)
    assert dequantize(*stored)[0] == 0
    if symmetric and float(t.abs().max()) > 1e-30:
        again = quantize_per_tensor(dequantize(*stored), bits)
        assert torch.equal(again.q, stored.q)


@pytest.mark.parametrize("inner", SIZES)
@pytest.mark.parametrize(("rows", "columns"), [(127, 129), (1, 1025), (128, 1)])
def test_integers_are_multiplied_exactly(rows: int, inner: int, columns: int) -> None:
    rng = np.random.default_rng(inner)
    a, b = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((rows, inner), (inner, columns)))
    one = torch.ones(())
    for near in (torch.float32, torch.bfloat16):  # as under autocast, which would round sums
        with torch.autocast("cpu", near, enabled=near != torch.float32):
            out = qgemm(torch.tensor(a), one.double(), torch.tensor(b), one.double())
        np.testing.assert_array_equal(out.numpy(), a.astype(np.int64) @ b.astype(np.int64))


def test_sums_beyond_int32_are_exact() -> None:
    a = torch.full((1, 140_000), -128, dtype=torch.int8)
    assert qgemm(a, torch.ones((), dtype=torch.float64), a.t(), torch.ones(())).item() == 140_000 * 2**14 > 2**31


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("inner", SIZES)
def test_a_quantised_product_is_that_of_the_levels(inner: int, symmetric: bool) -> None:
    x, w = numbers(129, inner, far=1.0), numbers(127, inner, seed=1, far=-0.3)
    bias = numbers(127, seed=2)
    a, b = quantize_per_channel(x, symmetric=symmetric), quantize_per_channel(w, symmetric=symmetric)
    wanted = wide(dequantize(*a)) @ wide(dequantize(*b)).T
    zeros = {"a_zero_point": a.zero_point, "b_zero_point": b.zero_point.t()}
    out = qgemm(a.q, a.scale, b.q.t(), b.scale.t(), **zeros)
    close = {"rtol": 1e-6, "atol": 1e-6 * inner}
    np.testing.assert_allclose(out.numpy(), wanted, **close)
    plain = quantize_per_tensor(x), quantize_per_tensor(w)
    np.testing.assert_allclose(
        qgemm(plain[0].q, plain[0].scale, plain[1].q.t(), plain[1].scale).numpy(),
        wide(dequantize(*plain[0])) @ wide(dequantize(*plain[1])).T, **close,
    )  # fmt: skip
    z = wanted + wide(bias)
    gelu_tanh = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    activations = {
        None: z, "relu": np.maximum(z, 0), "silu": z * special.expit(z), "gelu": z * special.ndtr(z),
        "gelu_tanh": gelu_tanh,
    }  # fmt: skip
    for activation, of in activations.items():
        got = fbgemm(a.q, a.scale, b.q.t(), b.scale.t(), bias, activation, **zeros)  # type: ignore[arg-type]
        np.testing.assert_allclose(got.numpy(), of, rtol=1e-5, atol=3e-6 * inner)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_layer_norm_is_within_half_a_level_of_float64(size: int, symmetric: bool) -> None:
    q, scale, zero_point = quantize_per_tensor(numbers(129, size, far=3.0), symmetric=symmetric)
    weight, bias = numbers(size, seed=1), numbers(size, seed=2)
    out = quantized_layernorm(q, scale, zero_point, weight, bias, symmetric=symmetric)
    x = wide(dequantize(q, scale, zero_point))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    wanted = normed * wide(weight) + wide(bias)
    step = float(out.scale)
    assert np.abs(wide(dequantize(*out)) - wanted).max() <= step * (0.5 if symmetric else 1.0) + 1e-4


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: quantize_per_tensor(torch.ones(2), 9), "bits: 9 is not from 2 to 8"),
        (lambda: quantize_per_tensor(torch.ones(2, dtype=torch.int32)), "t: int32 does not hold floating-point"),
        (lambda: quantize_per_tensor(torch.tensor([1.0, float("nan")])), "t: it holds NaN or infinity"),
        (lambda: quantize_per_channel(torch.ones(2, 3), axis=2), r"axis: 2 is none of a tensor of shape \(2, 3\)"),
        (
            lambda: qgemm(torch.ones(2, 3), torch.ones(()), torch.ones(3, 2, dtype=torch.int8), torch.ones(())),
            r"a_q: float32 of shape \(2, 3\) is not an int8 matrix",
        ),
        (
            lambda: qgemm(*(2 * (torch.ones(2, 3, dtype=torch.int8), torch.ones(())))),
            "b_q: its 2 rows do not fit the 3 columns of a_q",
        ),
        (
            lambda: qgemm(
                torch.ones(2, 3, dtype=torch.int8), torch.ones(3), torch.ones(3, 2, dtype=torch.int8), torch.ones(())
            ),
            r"a_scale: shape \(3,\) is neither \(\) nor \(2, 1\)",
        ),
        (
            lambda: fbgemm(
                torch.ones(2, 3, dtype=torch.int8), torch.ones(()), torch.ones(3, 2, dtype=torch.int8), torch.ones(()),
                activation="tanh",  # type: ignore[arg-type]
            ),
            "activation: 'tanh' is unknown; there are relu, silu, gelu, gelu_tanh",
        ),
        (
            lambda: quantized_layernorm(torch.ones(2, 3, dtype=torch.int8), torch.ones(()), 0, torch.ones(2)),
            r"weight: shape \(2,\) does not fit rows of 3",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        call()


# --- kernels of a device ----------------------------------------------------------------------------------------------


class Doubling:
    """Kernels that read products only; their numbers are `factor` times the right ones."""

    def __init__(self, factor: float) -> None:
        self.factor, self.calls = factor, 0

    def rescaled(self, *given: Any) -> None:
        return None

    normed = rescaled

    def product(self, *given: Any) -> Any:
        *terms, bias, _ = given
        self.calls += 1
        if self.factor == 0:
            raise RuntimeError("no such\narchitecture")
        if self.factor == math.inf:
            raise KeyboardInterrupt
        rows = integers._product(*terms)
        rows = rows if bias is None else torch.nn.functional.gelu(rows + bias, approximate="tanh")
        return self.factor * rows


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two providers for a CPU that Triton interprets: the one of lower rank is right, the other as a test says."""
    ours, right = Doubling(1.0), Doubling(1.0)

    def build(kernels: Any) -> str:
        def built() -> Built:
            if kernels.factor < 0:
                raise ImportError("no libtriton")
            missing = lambda operation, device, dtype: "" if device == "cpu" else "elsewhere"  # noqa: E731
            return Built({"integers": lambda: kernels}, "", missing)

        monkeypatch.setattr(integers, f"_{id(kernels)}", built, raising=False)
        return f"finetooth_kernels.integers:_{id(kernels)}"

    entries = [
        Kernel(name=name, build=build(kernels), summary="", serves=(Serves(operation="integers", rank=rank),))
        for name, kernels, rank in (("right", right, 1), ("acme", ours, 2), ("asked", Doubling(3.0), None))
    ]
    points = [SimpleNamespace(load=lambda: 1 / 0), SimpleNamespace(load=lambda: SimpleNamespace()),
              SimpleNamespace(load=lambda: SimpleNamespace(ft_kernels=lambda: entries))]  # fmt: skip
    monkeypatch.setattr(integers, "entry_points", lambda group: points)
    monkeypatch.setattr(integers, "_CHOSEN", {})
    monkeypatch.setattr(integers, "interpreted", lambda: True)
    return ours, right


def multiplied() -> Any:
    one, t = torch.ones(()), torch.ones(2, 2, dtype=torch.int8)
    return qgemm(t, one, t, one)[0, 0].item()


def test_kernels_of_the_highest_rank_compute(offered: Any) -> None:
    assert multiplied() == multiplied() == 2
    assert offered[0].calls == 3 and not offered[1].calls  # one of them before the first use


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (2.0, "multiply wrongly on cpu"),
        (0.0, "fail: no such architecture on cpu"),
        (-1.0, "fail: no libtriton on cpu"),  # when the provider is built
    ],
)
def test_kernels_that_are_wrong_are_left_alone(offered: Any, factor: float, said: str) -> None:
    offered[0].factor = factor
    with pytest.warns(UserWarning, match=f"^integers: the kernels acme {said}; they are not used there$"):
        assert multiplied() == 2
    assert multiplied() == 2 and offered[0].calls == (factor >= 0) and offered[1].calls == 3


def test_kernels_whose_trial_was_interrupted_are_tried_again(offered: Any) -> None:
    offered[0].factor = math.inf
    with pytest.raises(KeyboardInterrupt):
        multiplied()
    offered[0].factor = 2.0
    with pytest.warns(UserWarning, match="multiply wrongly"):
        assert multiplied() == 2


def test_without_an_accelerator_no_plugin_is_loaded(offered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integers, "interpreted", lambda: False)
    assert multiplied() == 2 and offered[0].calls == 0
