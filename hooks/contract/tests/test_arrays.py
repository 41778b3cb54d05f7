"""Every array function gives NumPy's result under torch (float64) and MLX (float32), and the same gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from finetooth_hooks import arrays as xp
from finetooth_hooks.compute import array_libraries
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as random_arrays

X = np.random.default_rng(0).normal(size=(3, 4))
Y = np.random.default_rng(1).normal(size=(3, 4))
MASK = X > 0.1
IDS = np.array([[2, 0, 1, 1], [3, 3, 0, 2], [1, 2, 0, 0]])
SEGMENTS = np.array([0, 2, 2])

FLOAT: dict[str, Callable[..., Any]] = {
    "exp": lambda a, b, m, i: xp.exp(a),
    "log": lambda a, b, m, i: xp.log(xp.abs(a) + 0.1),
    "log1p": lambda a, b, m, i: xp.log1p(xp.square(a)),
    "expm1": lambda a, b, m, i: xp.expm1(a),
    "sqrt": lambda a, b, m, i: xp.sqrt(xp.abs(a) + 0.1),
    "square": lambda a, b, m, i: xp.square(a),
    "abs": lambda a, b, m, i: xp.abs(a),
    "tanh": lambda a, b, m, i: xp.tanh(a),
    "sigmoid": lambda a, b, m, i: xp.sigmoid(a),
    "log_sigmoid": lambda a, b, m, i: xp.log_sigmoid(a),
    "softplus": lambda a, b, m, i: xp.softplus(a),
    "relu": lambda a, b, m, i: xp.relu(a),
    "maximum": lambda a, b, m, i: xp.maximum(a, b) + xp.maximum(a, 0.1) + xp.maximum(0.3, a),
    "minimum": lambda a, b, m, i: xp.minimum(a, b) + xp.minimum(a, 0.1) + xp.minimum(0.3, a),
    "clip": lambda a, b, m, i: xp.clip(a, -0.5, 0.7) + xp.clip(a, None, 0.2) + xp.clip(a, b - 1.0, 1),
    "where": lambda a, b, m, i: xp.where(m, a, b) + xp.where(m, a, 0.1) + xp.where(m, 1.0, 0.0),
    "sum": lambda a, b, m, i: xp.sum(a) + xp.sum(a, axis=1) + xp.sum(a, axis=0, keepdims=True)[0, 0],
    "mean": lambda a, b, m, i: xp.mean(a) + xp.mean(a, axis=1) + xp.mean(a, axis=0, keepdims=True)[0, 0],
    "max": lambda a, b, m, i: xp.max(a) + xp.max(a, axis=1) + xp.max(a, axis=0, keepdims=True)[0, 0],
    "min": lambda a, b, m, i: xp.min(a) + xp.min(a, axis=1) + xp.min(a, axis=0, keepdims=True)[0, 0],
    "logsumexp": lambda a, b, m, i: (
        xp.logsumexp(a) + xp.logsumexp(a, axis=1) + xp.logsumexp(a, axis=0, keepdims=True)[0, 0]
    ),
    "cumsum": lambda a, b, m, i: xp.cumsum(a) + xp.cumsum(a, axis=0),
    "sort": lambda a, b, m, i: xp.sort(a) * b + xp.sort(a, axis=0, ascending=False) * b,
    "take": lambda a, b, m, i: xp.take(a, i, axis=1) + xp.take(a, i[0], axis=1)[:, None],
    "take_along_axis": lambda a, b, m, i: xp.take_along_axis(a, i) * b,
    "segment_sum": lambda a, b, m, i: xp.segment_sum(a, xp.asarray(SEGMENTS, a), 4),
    "stack": lambda a, b, m, i: xp.stack([a, b], axis=1)[:, 0] + xp.stack([a, b])[1],
    "concat": lambda a, b, m, i: xp.concat([a, b, a], axis=1),
    "reshape": lambda a, b, m, i: xp.reshape(a, (2, -1)),
    "likes": lambda a, b, m, i: xp.zeros_like(a) + xp.ones_like(a) * a + xp.full_like(a, 0.1),
    "astype_like": lambda a, b, m, i: a * xp.astype_like(m, a),
    "stop_gradient": lambda a, b, m, i: a * xp.stop_gradient(a),
    "operators": lambda a, b, m, i: (a * b - a / (2.0 + b**2)) @ xp.reshape(b, (4, 3)),
}
OTHER: dict[str, Callable[..., Any]] = {
    "isfinite": lambda a, b, m, i: xp.isfinite(a),
    "logical_and": lambda a, b, m, i: xp.logical_and(m, a > b),
    "logical_or": lambda a, b, m, i: xp.logical_or(m, a > b),
    "logical_not": lambda a, b, m, i: xp.logical_not(m),
    "any": lambda a, b, m, i: xp.any(m, axis=1),
    "all": lambda a, b, m, i: xp.all(m, axis=0, keepdims=True),
    "argsort": lambda a, b, m, i: xp.argsort(a),
    "argsort_descending": lambda a, b, m, i: xp.argsort(a, axis=0, ascending=False),
    "arange": lambda a, b, m, i: xp.arange(5, a),
    "sum_of_bools": lambda a, b, m, i: xp.sum(m, axis=1),
    "mean_of_bools": lambda a, b, m, i: xp.mean(m, axis=1),
}
NUMPY_TRUTH: dict[str, Callable[..., Any]] = {
    "log_sigmoid": lambda: np.log(1 / (1 + np.exp(-X))),
    "sigmoid": lambda: 1 / (1 + np.exp(-X)),
    "softplus": lambda: np.log(1 + np.exp(X)),
    "relu": lambda: X * (X > 0),
    "logsumexp": lambda: np.log(np.exp(X).sum()) + np.log(np.exp(X).sum(axis=1)) + np.log(np.exp(X).sum(axis=0))[0],
    "sort": lambda: np.sort(X) * Y + np.sort(X, axis=0)[::-1] * Y,
    "segment_sum": lambda: np.stack([X[0], np.zeros(4), X[1] + X[2], np.zeros(4)]),
    "take_along_axis": lambda: np.array([[X[r, IDS[r, c]] for c in range(4)] for r in range(3)]) * Y,
    "argsort_descending": lambda: np.argsort(-X, axis=0),
}


def _torch(values: np.ndarray[Any, Any], grad: bool = False) -> Any:
    return torch.tensor(values, requires_grad=grad)


def _mlx(values: np.ndarray[Any, Any]) -> Any:
    return mx.array(values.astype(np.float32) if values.dtype.kind == "f" else values)


def _plain(values: Any) -> np.ndarray[Any, Any]:
    return values.numpy() if torch.is_tensor(values) else np.asarray(values)


@pytest.mark.parametrize("name", [*FLOAT, *OTHER])
def test_libraries_agree(name: str) -> None:
    function = {**FLOAT, **OTHER}[name]
    wanted = function(X, Y, MASK, IDS)
    assert np.shape(wanted) != () or name == "arange"
    under_torch = function(_torch(X), _torch(Y), _torch(MASK), _torch(IDS))
    np.testing.assert_allclose(under_torch.numpy(), wanted, rtol=1e-12, atol=1e-12)
    under_mlx = function(_mlx(X), _mlx(Y), _mlx(MASK), _mlx(IDS))
    np.testing.assert_allclose(np.array(under_mlx), wanted, rtol=2e-5, atol=1e-6)
    if np.asarray(wanted).dtype == np.float64 and name != "mean_of_bools":
        assert under_torch.dtype == torch.float64


@pytest.mark.parametrize("name", NUMPY_TRUTH)
def test_numpy_follows_the_definition(name: str) -> None:
    np.testing.assert_allclose({**FLOAT, **OTHER}[name](X, Y, MASK, IDS), NUMPY_TRUTH[name](), rtol=1e-12)


@pytest.mark.parametrize("name", FLOAT)
def test_gradients_agree(name: str) -> None:
    function = FLOAT[name]
    leaf = _torch(X, grad=True)
    torch.sum(torch.sin(function(leaf, _torch(Y), _torch(MASK), _torch(IDS)))).backward()
    assert leaf.grad is not None
    got = mx.grad(lambda a: mx.sum(mx.sin(function(a, _mlx(Y), _mlx(MASK), _mlx(IDS)))))(_mlx(X))
    np.testing.assert_allclose(np.array(got), leaf.grad.numpy(), rtol=2e-4, atol=1e-5)
    if name == "stop_gradient":
        np.testing.assert_allclose(leaf.grad.numpy(), np.cos(X * X) * X)
        return
    for index in ((0, 0), (2, 3)):
        ends = []
        for sign in (1, -1):
            moved = X.copy()
            moved[index] += sign * 1e-6
            ends.append(np.sin(function(moved, Y, MASK, IDS)).sum())
        assert leaf.grad.numpy()[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    random_arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-50, 50, width=32))
)
def test_any_shape_agrees(values: np.ndarray[Any, Any]) -> None:
    for function in (
        lambda a: xp.log_sigmoid(a) + xp.softplus(a),
        lambda a: xp.sort(a, ascending=False) + xp.cumsum(a, axis=0),
        lambda a: xp.logsumexp(a, axis=1, keepdims=True) - a,
        lambda a: xp.where(a > 0, xp.minimum(a, 1.5), xp.clip(a, -2.5, None)),
    ):
        wanted = function(values)
        np.testing.assert_allclose(function(_torch(values)).numpy(), wanted, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(np.array(function(_mlx(values))), wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("convert", [np.asarray, _torch, _mlx], ids=["numpy", "torch", "mlx"])
def test_log_sigmoid_and_softplus_are_stable(convert: Callable[..., Any]) -> None:
    x = convert(np.array([-1e4, 0.0, 1e4]))
    np.testing.assert_allclose(_plain(xp.log_sigmoid(x)), [-1e4, -np.log(2), 0.0], rtol=1e-6)
    np.testing.assert_allclose(_plain(xp.softplus(x)), [0.0, np.log(2), 1e4], rtol=1e-6)
    np.testing.assert_allclose(_plain(xp.sigmoid(x)), [0.0, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(_plain(xp.logsumexp(x)), 1e4, rtol=1e-6)


def test_log_sigmoid_has_finite_gradients_far_out() -> None:
    values = np.array([-1e4, 0.0, 1e4])
    leaf = _torch(values, grad=True)
    xp.sum(xp.log_sigmoid(leaf)).backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), [1.0, 0.5, 0.0])
    got = mx.grad(lambda a: xp.sum(xp.log_sigmoid(a)))(_mlx(values))
    np.testing.assert_allclose(np.array(got), [1.0, 0.5, 0.0])


def test_scalars_keep_double_precision_under_torch() -> None:
    x = torch.full((2,), 5.0, dtype=torch.float64)
    for got in (xp.minimum(x, 0.1), xp.clip(x, None, 0.1), xp.where(x > 9, x, 0.1), xp.maximum(-x, 0.1)):
        assert got.tolist() == [0.1, 0.1]


def test_low_precision_stays_low() -> None:
    x = torch.ones(2, dtype=torch.bfloat16)
    for got in (xp.maximum(x, 0.1), xp.where(x > 0, x, 0.0), xp.clip(x, 0, 2), xp.softplus(x)):
        assert got.dtype == torch.bfloat16


def test_numpy_state_joins_any_library() -> None:
    state = np.array([0.5, -0.5])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        mine = torch.zeros(2, dtype=dtype)
        for got in (xp.maximum(mine, state), xp.clip(mine, state, None), xp.where(mine == 0, state, mine)):
            assert got.dtype == dtype
        assert xp.maximum(mine, state).tolist() == [0.5, 0.0]
        assert xp.concat([mine, state]).tolist() == [0.0, 0.0, 0.5, -0.5]
        assert xp.segment_sum(mine + 1, np.array([1, 1]), 2).tolist() == [0.0, 2.0]
        assert xp.take(mine, np.array([0])).tolist() == [0.0]
        assert xp.logical_or(mine == 0, np.array([False, False])).tolist() == [True, True]
    zeros = mx.zeros(2)
    for got in (xp.maximum(zeros, state), xp.clip(zeros, state, None), xp.stack([zeros, state])):
        assert got.dtype == mx.float32
    assert np.array(xp.maximum(zeros, state)).tolist() == [0.5, 0.0]
    assert np.array(xp.segment_sum(zeros + 1, np.array([1, 1]), 2)).tolist() == [0.0, 2.0]
    got = xp.where(np.array([True, False]), zeros, state)
    assert np.array(got).tolist() == [0.0, -0.5]


@pytest.mark.parametrize("convert", [np.asarray, _torch, _mlx], ids=["numpy", "torch", "mlx"])
def test_item_is_a_python_float(convert: Callable[..., Any]) -> None:
    got = xp.item(xp.sum(convert(np.array([1.5, 2.0]))))
    assert type(got) is float and got == 3.5


@pytest.mark.parametrize("convert", [np.asarray, _torch, _mlx], ids=["numpy", "torch", "mlx"])
def test_to_numpy_is_a_constant_in_host_memory(convert: Callable[..., Any]) -> None:
    got = xp.to_numpy(convert(np.array([[1.5, 2.0], [0.25, 0.0]])) * 2.0)
    assert type(got) is np.ndarray and got.tolist() == [[3.0, 4.0], [0.5, 0.0]]


def test_to_numpy_takes_what_has_a_graph() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert xp.to_numpy(x * 2).tolist() == [2.0, 4.0] and xp.to_numpy(x * 2).dtype == np.float64
    assert xp.to_numpy(2.5).item() == 2.5


def test_subclasses_are_found() -> None:
    assert torch.is_tensor(xp.exp(torch.nn.Parameter(torch.zeros(2))))


def test_mixed_libraries_are_refused() -> None:
    with pytest.raises(TypeError, match="different libraries"):
        xp.maximum(torch.zeros(2), mx.zeros(2))


def test_lists_are_refused() -> None:
    with pytest.raises(TypeError, match="list"):
        xp.exp([1.0, 2.0])


def test_another_library_can_join_once() -> None:
    class Strange(np.ndarray[Any, Any]):
        pass

    Strange.__module__ = "strange_arrays.core"
    marks: list[str] = []

    class Library(array_libraries.ArrayLibrary):
        def exp(self, x: Any) -> Any:
            marks.append("exp")
            return self.np.exp(x)

    xp.register("strange_arrays", Library(np))
    np.testing.assert_allclose(xp.exp(np.zeros(2).view(Strange)), 1.0)
    assert marks == ["exp"]
    for prefix in ("strange_arrays", "numpy", "torch"):
        with pytest.raises(ValueError, match="already"):
            xp.register(prefix, Library(np))


def test_every_function_is_tried() -> None:
    public = {
        name
        for name, value in vars(xp).items()
        if callable(value) and getattr(value, "__module__", "") == xp.__name__ and not name.startswith("_")
    }
    tried = {
        *FLOAT,
        *OTHER,
        "zeros_like",
        "ones_like",
        "full_like",
        "asarray",
        "item",
        "to_numpy",
        "register",
        "library",
    }
    assert public <= tried, public - tried


def test_importing_it_imports_no_framework() -> None:
    import subprocess

    loaded = "print([m for m in ('torch', 'mlx', 'numpy') if m in sys.modules])"
    program = f"import sys; import finetooth_hooks.arrays; {loaded}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
