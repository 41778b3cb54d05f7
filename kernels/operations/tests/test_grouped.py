"""`grouped_matmul` against NumPy in float64: values, gradients, empty groups, what is kept, torch's own product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kernels import grouped
from finetooth_kernels.grouped import grouped_matmul

ENDS = torch.tensor([4, 4, 10, 23], dtype=torch.int32)
SIZES = {"x": (23, 16), "weight": (4, 16, 24), "a": (4, 16, 8), "b": (4, 8, 24)}


def drawn(dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = {name: torch.randn(size, generator=generator).to(dtype) for name, size in SIZES.items()}
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def oracle(t: dict[str, torch.Tensor], slopes: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The value, and the gradients of all inputs."""
    x, weight, a, b = (t[name].detach().double().numpy() for name in SIZES)
    dy = slopes.double().numpy()
    found = {"value": np.zeros((23, 24)), **{name: np.zeros(size) for name, size in SIZES.items()}}
    for g, rows in enumerate((slice(0, 4), slice(4, 4), slice(4, 10), slice(10, 23))):
        found["value"][rows] = x[rows] @ weight[g] + 0.5 * (x[rows] @ a[g]) @ b[g]
        found["weight"][g] = x[rows].T @ dy[rows]
        found["a"][g] = 0.5 * x[rows].T @ dy[rows] @ b[g].T
        found["b"][g] = 0.5 * (x[rows] @ a[g]).T @ dy[rows]
        found["x"][rows] = dy[rows] @ (weight[g] + 0.5 * a[g] @ b[g]).T
    return found


def check(t: dict[str, torch.Tensor], tolerance: float) -> None:
    slopes = torch.randn(23, 24, generator=torch.Generator().manual_seed(4)).to(t["x"].dtype)
    out = grouped_matmul(t["x"], t["weight"], ENDS, (t["a"], t["b"], 0.5))
    out.backward(slopes)
    assert out.dtype == t["x"].dtype
    for name, wanted in oracle(t, slopes).items():
        got = out if name == "value" else t[name].grad
        assert got is not None and (name == "value" or got.dtype == t[name].dtype)
        off = np.abs(got.detach().double().numpy() - wanted).max() / np.abs(wanted).max()
        assert off < tolerance, (name, off)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_values_and_gradients_are_those_of_the_formula(dtype: Any, tolerance: float) -> None:
    check(drawn(dtype), tolerance)


def test_wider_factors_get_gradients_of_their_own_width() -> None:
    t = drawn(torch.bfloat16)
    for name in ("a", "b"):
        t[name] = t[name].detach().float().requires_grad_()
    check(t, 2e-2)


def test_torchs_own_product_is_the_same_where_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has it on CPUs too, so that its layouts can be seen. A rank of 6 is filled up, its gradients not."""
    taken: list[int] = []
    own = torch.nn.functional.grouped_mm
    monkeypatch.setattr(grouped, "_takes", lambda *tensors: all(map(grouped._aligned, tensors)))
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", lambda *a, **named: taken.append(1) or own(*a, **named))
    t = drawn()
    t["weight"] = t["weight"].detach().mT.contiguous().mT.requires_grad_()  # as linear layers hold it
    check(t, 2e-6)
    assert len(taken) == 9
    six = {**drawn(), "a": drawn()["a"].detach()[:, :, :6].requires_grad_()}
    six["b"] = drawn()["b"].detach()[:, :6].requires_grad_()
    taken.clear()
    grouped_matmul(six["x"], six["weight"], ENDS, (six["a"], six["b"], 0.5)).sum().backward()
    assert len(taken) == 9 and six["a"].grad is not None and six["a"].grad.shape == (4, 16, 6)


def test_rows_and_small_products_alone_are_kept() -> None:
    t = drawn()
    weight = t["weight"].detach()
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        grouped_matmul(t["x"], weight, ENDS, (t["a"], t["b"], 0.5))
    assert [tuple(t.shape) for t in kept] == [(23, 16), (4, 16, 24), (4,), (4, 16, 8), (4, 8, 24), (23, 8)]
    assert kept[1].data_ptr() == weight.data_ptr()


def test_rows_of_a_frozen_weight_are_not_kept() -> None:
    """Its gradient and that of a left factor alone read them."""
    t = drawn()
    weight, right = t["weight"].detach(), (t["a"].detach(), t["b"], 0.5)
    for addition, trains in ((None, False), (None, True), (right, False)):
        x = torch.randn(23, 16, requires_grad=True)
        kept: list[Any] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            out = grouped_matmul(x, weight.requires_grad_(trains), ENDS, addition)
        assert sum(t.shape == x.shape for t in kept) == trains
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert gradient.shape == x.shape
        weight = weight.detach()


def test_no_rows() -> None:
    t = drawn()
    assert grouped_matmul(t["x"][:0], t["weight"], torch.zeros(4, dtype=torch.int32)).shape == (0, 24)
