"""Compiled norms, gated activations and rotations against formulas in float64 and against the torch operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kernels.gated import ACTIVATIONS
from finetooth_native import build as native
from finetooth_native.operations import gated, residual_norm, rms_norm, rotate
from torch import Tensor

pytestmark = pytest.mark.usefixtures("compiled")

Off = Callable[[], AbstractContextManager[None]]

EPS = 1e-5
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
"""Half a unit in the last place, relative."""
DTYPES = list(ROUNDING)
SHAPES = [(1, 1), (5, 7), (3, 65), (0, 8), (1, 576), (70, 64), (300, 96)]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def wide(x: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Exactly, as float64."""
    return x.detach().to(torch.float64).numpy()


def within(got: Tensor, truth: Any, bound: Any) -> None:
    error = np.abs(wide(got) - truth)
    assert got.shape == truth.shape
    assert np.all(error <= bound + 1e-37), f"{np.max(error / (bound + 1e-37))} times what is allowed"


def roundings(count: float, dtype: torch.dtype, *numbers: Any) -> Any:
    """As much as so many roundings of numbers of these sizes can do."""
    return count * ROUNDING[dtype] * sum(np.abs(number) for number in numbers)


def gradients(call: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    return torch.autograd.grad(call(*inputs), inputs, normal(*call(*inputs).shape, dtype=inputs[0].dtype, seed=9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_against_its_formula(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype, seed=1)
    grad = normal(*shape, dtype=dtype, seed=9)
    a, w, g = wide(x), wide(weight), wide(grad)
    r = 1 / np.sqrt((a**2).mean(-1, keepdims=True) + EPS)
    n = a * r
    within(rms_norm(x, weight, EPS), w * n, roundings(6, dtype, w * n))
    d_x, d_weight = gradients(lambda x, weight: rms_norm(x, weight, EPS), x, weight)
    mean = (g * w * n).mean(-1, keepdims=True)
    sizes = g * w, n * np.abs(g * w * n).mean(-1, keepdims=True)
    within(d_x, r * (g * w - n * mean), r * roundings(16, dtype, *sizes))
    within(d_weight, (g * n).sum(0), roundings(8, dtype, np.abs(g * n).sum(0)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_residual_stream_goes_on_beside_its_norm(
    dtype: torch.dtype, shape: tuple[int, int], implementation: str
) -> None:
    h, weight = normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype, seed=2)
    same, normed = residual_norm(h, weight, EPS)
    assert torch.equal(same, h) and torch.equal(normed, rms_norm(h, weight, EPS))
    beside, through = normal(*shape, dtype=dtype, seed=3), normal(*shape, dtype=dtype, seed=9)
    inputs = [part.requires_grad_() for part in (h, weight)]
    d_h, d_weight = torch.autograd.grad(residual_norm(*inputs, EPS), inputs, (beside, through))
    d_norm, expected = gradients(lambda h, weight: rms_norm(h, weight, EPS), h, weight)
    assert torch.equal(d_weight, expected)
    within(d_h, wide(d_norm) + wide(beside), roundings(4, dtype, wide(d_norm), wide(beside)))


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_wider_than_their_weight_lose_nothing_but_in_the_result(
    shape: tuple[int, int], implementation: str
) -> None:
    """What bfloat16 layers read of a float32 stream; its gradient stays in float32."""
    h, beside = normal(*shape, dtype=torch.float32), normal(*shape, dtype=torch.float32, seed=3)
    weight, through = normal(shape[1], dtype=torch.bfloat16, seed=2), normal(*shape, dtype=torch.bfloat16, seed=9)
    inputs = [part.requires_grad_() for part in (h, weight)]
    outputs = residual_norm(*inputs, EPS)
    d_h, d_weight = torch.autograd.grad(outputs, inputs, (beside, through))
    assert [x.dtype for x in (*outputs, d_h, d_weight)] == [torch.float32, torch.bfloat16] * 2
    a, w, g = wide(h), wide(weight), wide(through)
    r = 1 / np.sqrt((a**2).mean(-1, keepdims=True) + EPS)
    n = a * r
    within(outputs[1], w * n, roundings(2.1, torch.bfloat16, w * n))
    mean = (g * w * n).mean(-1, keepdims=True)
    sizes = g * w, n * np.abs(g * w * n).mean(-1, keepdims=True)
    exact = r * (g * w - n * mean) + wide(beside)
    within(d_h, exact, r * roundings(16, torch.float32, *sizes) + roundings(4, torch.float32, exact))
    within(d_weight, (g * n).sum(0), roundings(2.1, torch.bfloat16, np.abs(g * n).sum(0)))


FORMULAS: dict[str, Callable[[float], tuple[float, float]]] = {
    "silu": lambda x: (x * sigmoid(x), sigmoid(x) * (1 + x * sigmoid(-x))),
    "gelu": lambda x: (
        x * 0.5 * math.erfc(-x / math.sqrt(2)),
        0.5 * math.erfc(-x / math.sqrt(2)) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": lambda x: gelu_tanh(x),
}
"""Value and slope, in forms that lose nothing far from zero."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def gelu_tanh(x: float) -> tuple[float, float]:
    c = 2 * math.sqrt(2 / math.pi)
    s = sigmoid(c * (x + 0.044715 * x**3))
    rest = sigmoid(-c * (x + 0.044715 * x**3))
    return x * s, s + x * s * rest * c * (1 + 3 * 0.044715 * x**2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_against_its_formula(dtype: torch.dtype, activation: str, shape: tuple[int, int]) -> None:
    rows, width = shape
    gate_up, grad = normal(rows, 2 * width, dtype=dtype, scale=3.0), normal(rows, width, dtype=dtype, seed=9)
    gate, up, g = wide(gate_up)[:, :width], wide(gate_up)[:, width:], wide(grad)
    both = np.array([FORMULAS[activation](x) for x in gate.ravel()]).reshape(*gate.shape, 2)
    value, slope = both[..., 0], both[..., 1]
    # a tail is exp of a number as long as its logarithm, rounded to float32; the slope has terms of size 1 that cancel
    tail = 2.0**-24 * (8 + 4 * np.abs(np.log(np.abs(value)))) * np.abs(value)
    within(gated(gate_up, activation), value * up, np.abs(up) * tail + roundings(2, dtype, value * up))
    (d_gate_up,) = gradients(lambda x: gated(x, activation), gate_up)
    within(d_gate_up[:, width:], g * value, np.abs(g) * tail + roundings(2, dtype, g * value))
    within(d_gate_up[:, :width], g * up * slope, np.abs(g * up) * 2.0**-20 + roundings(2, dtype, g * up * slope))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_exact_to_float32_wherever_they_are_not_zero(activation: str) -> None:
    """Over the whole line, tails too: torch's own gelu loses them, x (1 + erf) being a difference."""
    gate = torch.linspace(-12.0, 12.0, 40_001)
    rows = torch.stack([gate, torch.ones_like(gate)], 1)
    got = wide(gated(rows, activation))[:, 0]
    truth = np.array([FORMULAS[activation](float(x))[0] for x in gate])
    seen = np.abs(truth) > 1e-36
    # far out an exponent of size |log y| is itself rounded, which is that many roundings of the result
    error = np.abs(got - truth)[seen] / np.abs(truth[seen])
    assert np.all(error <= 2.0**-24 * (8 + 4 * np.abs(np.log(np.abs(truth[seen])))))
    near = np.abs(truth) > 0.05
    assert np.max(np.abs(got - truth)[near] / np.abs(truth[near])) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_so(activation: str, dtype: torch.dtype, native_off: Off) -> None:
    numbers = [math.nan, math.inf, -math.inf, 0.0, -0.0, 60.0, -60.0, 88.8, -88.8, 104.0, -104.0, 1e15, -1e15]
    rows = torch.tensor([[gate, up] for gate in numbers for up in [*numbers, 1.0]]).to(dtype)

    def call() -> tuple[Tensor, ...]:
        return gated(rows, activation), *gradients(lambda x: gated(x, activation), rows)

    with native_off():
        expected = call()
    for ours, theirs in zip(call(), expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        finite = ~theirs.isnan()
        torch.testing.assert_close(ours[finite], theirs[finite], rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_norm_that_are_not_finite(dtype: torch.dtype, native_off: Off) -> None:
    x, weight = normal(4, 20, dtype=dtype), normal(20, dtype=dtype, seed=1)
    x[1, 3], x[2, 4] = math.nan, math.inf

    def call() -> tuple[Tensor, ...]:
        return rms_norm(x, weight, EPS), *gradients(lambda x, weight: rms_norm(x, weight, EPS), x, weight)

    with native_off():
        expected = call()
    for ours, theirs in zip(call(), expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    assert rms_norm(x, weight, EPS)[0].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "heads", "half"),
    [((4, 3, 8), 2, 4), ((4, 3, 10), 3, 3), ((1, 1, 2), 1, 1), ((0, 3, 8), 2, 4), ((70, 15, 64), 12, 32),
     ((3, 2, 7), 1, 3), ((3, 2, 6), 0, 3)],
)  # fmt: skip
def test_rotate_against_complex_numbers(dtype: torch.dtype, shape: tuple[int, int, int], heads: int, half: int) -> None:
    x, angles = normal(*shape, dtype=dtype), normal(shape[0], half, dtype=torch.float32, seed=3)

    def turned(values: Any, sign: float) -> Any:
        # the angles as float32 rounds their cosine and sine, since that is what `rotate` is given
        turn = wide(angles.cos()) + sign * 1j * wide(angles.sin())
        out = values.copy()
        pairs = (values[:, :heads, :half] + 1j * values[:, :heads, half : 2 * half]) * turn[:, None]
        out[:, :heads, :half], out[:, :heads, half : 2 * half] = pairs.real, pairs.imag
        return out

    got = rotate(x, angles.cos(), angles.sin(), heads)
    within(got, turned(wide(x), 1.0), roundings(2, dtype, np.abs(wide(x)).max(initial=0.0)))
    assert torch.equal(got[:, heads:], x[:, heads:]) and torch.equal(got[..., 2 * half :], x[..., 2 * half :])
    (d_x,) = gradients(lambda x: rotate(x, angles.cos(), angles.sin(), heads), x)
    grad = wide(normal(*shape, dtype=dtype, seed=9))
    within(d_x, turned(grad, -1.0), roundings(2, dtype, np.abs(grad).max(initial=0.0)))


def operations(dtype: torch.dtype, rows: int = 300) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Each operation, forward and backward, on enough rows for several threads."""
    x, weight = normal(rows, 96, dtype=dtype), normal(96, dtype=dtype, seed=1)
    heads, angles = normal(rows, 4, 24, dtype=dtype), normal(rows, 12, dtype=torch.float32, seed=3)

    def with_gradients(call: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (call(*inputs), *gradients(call, *inputs))

    return {
        "rms_norm": with_gradients(lambda x, weight: rms_norm(x, weight, EPS), x, weight),
        "rotate": with_gradients(lambda x: rotate(x, angles.cos(), angles.sin(), 3), heads),
        **{name: with_gradients(lambda x, name=name: gated(x, name), x) for name in ACTIVATIONS},
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(operations(torch.float32, 1)))
def test_torch_says_the_same(dtype: torch.dtype, name: str, native_off: Off) -> None:
    """bfloat16: torch rounds more often on the way."""
    call = operations(dtype)[name]
    with native_off():
        expected = call()
    for ours, theirs in zip(call(), expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(
            ours, theirs, rtol=8 * ROUNDING[dtype], atol=scale * ROUNDING[dtype] * (2 if dtype == torch.bfloat16 else 8)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(operations(torch.float32, 1)))
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype, name: str) -> None:
    call, before = operations(dtype)[name], torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class Counted:
    """The compiled kernels, and how often they were asked for and given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[bool] = []
        real = native.readable

        def readable(*tensors: Tensor, strided: bool = False) -> bool:
            answer = real(*tensors, strided=strided)
            self.given.append(answer)
            return answer

        monkeypatch.setattr(native, "readable", readable)  # which `library_for` asks first of all


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(operations(torch.float32, 1)))
def test_compiled_kernels_are_used(dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    operations(dtype)[name]()
    assert len(counted.given) >= 3 and all(counted.given)


def test_other_tensors_take_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    for dtype in (torch.float64, torch.float16):
        rms_norm(torch.ones(2, 4, dtype=dtype), torch.ones(4, dtype=dtype), EPS)
    turned = normal(4, 6, dtype=torch.float32).t()
    weight = torch.ones(4)
    torch.testing.assert_close(rms_norm(turned, weight, EPS), rms_norm(turned.contiguous(), weight, EPS))
    assert counted.given == [False, False, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_are_not_contiguous(dtype: torch.dtype) -> None:
    """As that of a sum, a number without strides."""
    x, weight = normal(5, 8, dtype=dtype).requires_grad_(), normal(8, dtype=dtype, seed=1)
    for call in (lambda x: rms_norm(x, weight, EPS), lambda x: gated(x, "silu")):
        y = call(x)
        (broadcast,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (whole,) = torch.autograd.grad(y, x, torch.ones_like(y))
        torch.testing.assert_close(broadcast, whole, rtol=8 * ROUNDING[dtype], atol=8 * ROUNDING[dtype])


def test_arguments_that_do_not_fit_reach_no_compiled_kernel() -> None:
    """Torch's own errors, and no reading beyond the end."""
    with pytest.raises(RuntimeError):
        rms_norm(torch.ones(2, 4), torch.ones(5), EPS)
    with pytest.raises(RuntimeError):
        rotate(torch.ones(2, 3, 4), torch.ones(2, 3), torch.ones(2, 3), 3)
    with pytest.raises(RuntimeError):
        rotate(torch.ones(2, 3, 4), torch.ones(5, 2), torch.ones(5, 2), 3)


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Ties, neighbours, overflow, subnormal numbers; and a NaN whose bits are all ones, which rounding would carry."""
    numbers = [1.0, 1 + 2**-8, 1 + 2**-9, 1 + 3 * 2**-9, 1 + 2**-8 + 2**-20, 3e38, 3.4e38, -1e-40, -3.0, math.inf]
    cos = torch.tensor([*numbers, math.nan])[:, None]
    cos[-1] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    rows = torch.tensor([1.0, 0.0]).to(torch.bfloat16).expand(len(cos), 1, 2).contiguous()
    got = rotate(rows, cos, torch.zeros_like(cos), 1)[:, 0, 0]
    torch.testing.assert_close(got, cos[:, 0].to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)
