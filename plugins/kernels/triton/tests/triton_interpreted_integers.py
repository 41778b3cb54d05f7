"""Tensors as integers by interpreted Triton kernels, against NumPy's float64.

Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported. test_triton_interpreter.py runs it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kernels import integers
from finetooth_kernels.integers import (
    Quantized,
    dequantize,
    fbgemm,
    qgemm,
    quantize_per_channel,
    quantize_per_tensor,
    quantized_layernorm,
)
from finetooth_triton.integers import IntegerKernels

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"

SIZES = (1, 127, 128, 129, 1025)
CPU = torch.device("cpu")
BY_KERNELS = Counter[str]()


class Counting(IntegerKernels):
    """The kernels, and how often each computed."""

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)

        def counted(*given: Any) -> Any:
            made = method(*given)
            BY_KERNELS[name] += made is not None
            return made

        return counted


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert isinstance(integers._kernels(CPU), IntegerKernels)  # found, and right in the trial before its first use
    monkeypatch.setitem(integers._CHOSEN, CPU, Counting())
    BY_KERNELS.clear()
    yield


def numbers(*shape: int, seed: int = 0, far: float = 0.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + far).to(dtype)


def wide(tensor: Any) -> Any:
    return tensor.detach().double().numpy()


def by_torch(call: Callable[[], Quantized]) -> Quantized:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(integers._CHOSEN, CPU, None)
        return call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (8, False), (4, True), (2, False)])
@pytest.mark.parametrize("size", SIZES)
def test_numbers_have_the_levels_of_torch(size: int, bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    apart = numbers(3, size, 4, far=0.5, dtype=dtype).transpose(0, 1)[..., ::2]
    calls = [lambda: quantize_per_tensor(apart, bits, symmetric=symmetric)]
    calls += [lambda axis=axis: quantize_per_channel(apart, bits, axis, symmetric=symmetric) for axis in range(3)]
    for call in calls:
        ours, theirs = call(), by_torch(call)
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
        back = dequantize(*ours)
        exact = (wide(ours.q) - wide(ours.zero_point)) * wide(ours.scale)
        np.testing.assert_allclose(wide(back), exact, rtol=2**-23)
        assert back.shape == apart.shape and back.dtype == torch.float32
    assert BY_KERNELS == {"rescaled": 8}


def test_ties_go_to_even_levels_and_far_numbers_to_the_last() -> None:
    t = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 127.0, -127.0])
    assert quantize_per_tensor(t).q.tolist() == [0, 2, 2, 0, -2, -126, 127, -127]
    far = torch.tensor([3e38, -3e38, 1e-40, 0.0])
    assert quantize_per_tensor(far).q.tolist() == [127, -127, 0, 0]
    assert quantize_per_tensor(torch.zeros(130)).scale == 1 and not quantize_per_tensor(torch.zeros(130)).q.any()
    assert not dequantize(torch.ones(3, dtype=torch.int8), torch.zeros(()), 7).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(129, 127, 128), (127, 1025, 65), (1, 128, 129), (65, 1, 1),
                                                        (1025, 16, 3), (2, 16, 1025)])  # fmt: skip
def test_products_are_exact(rows: int, inner: int, columns: int, symmetric: bool) -> None:
    a = quantize_per_channel(numbers(rows, inner, far=1.0), symmetric=symmetric)
    b = quantize_per_channel(numbers(columns, inner, seed=1, far=-0.3), symmetric=symmetric)
    one, zeros = torch.ones(()), {"a_zero_point": a.zero_point, "b_zero_point": b.zero_point.t()}
    apart = a.q.t().contiguous().t()
    exact = (a.q.numpy().astype(int) - a.zero_point.numpy()) @ (b.q.numpy().astype(int) - b.zero_point.numpy()).T
    BY_KERNELS.clear()
    np.testing.assert_array_equal(qgemm(apart, one, b.q.t(), one, **zeros).numpy(), exact.astype(np.float32))
    bias = numbers(2 * columns, seed=2)[::2]
    z = exact * wide(a.scale) * wide(b.scale).T + wide(bias)
    tanh = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    below = wide(torch.special.ndtr(torch.tensor(z)))
    made = {None: z, "relu": np.maximum(z, 0), "silu": z / (1 + np.exp(-z)), "gelu": z * below, "gelu_tanh": tanh}
    for activation, wanted in made.items():
        got = fbgemm(a.q, a.scale, b.q.t(), b.scale.t(), bias, activation, **zeros)  # type: ignore[arg-type]
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=3e-6 * inner)
    assert BY_KERNELS == {"product": 6}


def test_products_of_the_greatest_numbers_and_of_whole_scales() -> None:
    a = torch.full((3, 4000), -128, dtype=torch.int8)
    scale, zero = torch.tensor(0.5), torch.tensor(127, dtype=torch.int32)
    out = qgemm(a, scale, a.t(), scale, a_zero_point=127, b_zero_point=zero)
    assert (out == 4000 * 255**2 / 4).all() and BY_KERNELS["product"] == 1
    hidden = fbgemm(a, scale, a.t(), scale, torch.tensor([float("nan"), 0.0, 1.0]), "relu")
    assert hidden.isnan().tolist() == 3 * [[True, False, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_layer_norm_is_within_half_a_level_of_float64(size: int, symmetric: bool, dtype: torch.dtype) -> None:
    q, scale, zero_point = quantize_per_tensor(numbers(size, 65, far=3.0).t(), symmetric=symmetric)
    weight, bias = numbers(size, seed=1, dtype=dtype), numbers(2 * size, seed=2, dtype=dtype)[::2]
    BY_KERNELS.clear()
    out = quantized_layernorm(q, scale, zero_point, weight, bias, symmetric=symmetric)
    assert BY_KERNELS == {"normed": 1}
    x = wide(dequantize(q, scale, zero_point))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    wanted, step = normed * wide(weight) + wide(bias), float(out.scale)
    assert np.abs(wide(dequantize(*out)) - wanted).max() <= step * (0.5 if symmetric else 1.0) + 1e-4
    with pytest.raises(ValueError, match=r"^t: it holds NaN or infinity"):
        quantized_layernorm(q, scale, zero_point, weight, torch.full_like(bias, float("nan")))


def test_what_kernels_do_not_read_torch_computes() -> None:
    t = numbers(5, 3).double()
    q, scale, zero_point = quantize_per_tensor(t)
    qgemm(q, scale, q.t(), scale)
    quantized_layernorm(q, scale, zero_point, t[0])
    empty = quantize_per_channel(torch.empty(3, 0))
    assert dequantize(*empty).shape == (3, 0) and quantize_per_tensor(torch.empty(0)).scale == 1
    nothing = qgemm(empty.q, empty.scale, empty.q.t(), empty.scale.t())
    assert nothing.shape == (3, 3) and not nothing.any()
    no_rows = quantize_per_channel(torch.empty(0, 3))
    assert qgemm(no_rows.q, no_rows.scale, q.t(), torch.ones(()), a_zero_point=zero_point).shape == (0, 5)
    deep = torch.ones(1, 140_000, dtype=torch.int8)
    assert qgemm(deep, torch.ones(()), deep.t(), torch.ones(())) == 140_000
    assert not sum(BY_KERNELS.values())
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^t: it holds NaN or infinity"):
            quantize_per_channel(torch.tensor([[1.0, 2.0], [bad, 0.0]]))
