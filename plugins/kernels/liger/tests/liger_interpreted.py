"""Liger's kernels under Triton's interpreter: the conformance kit, and values and gradients at awkward sizes.

Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported. test_liger_interpreter.py runs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import liger_kernel.ops.rms_norm as liger_norm
import pytest
import torch
import triton
import triton.language as tl
from finetooth_kernels import operations as known
from finetooth_kit import collect
from finetooth_kit.parametrize import parametrize
from finetooth_liger import operations

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_liger_interpreter.py"

TOLERANCE = {torch.float32: 3e-5, torch.float16: 8e-3}
"""Those of the conformance kit, of the largest number. Triton's interpreter multiplies bf16 as if it were integers."""


class Scalar(float):
    """A kernel's number as a device has it: with a dtype that can be changed, which the interpreter leaves out."""

    def to(self, dtype: Any) -> Scalar:
        return self


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    """The one of CUDA's library cannot be interpreted."""
    return tl.rsqrt(x)


@pytest.fixture(autouse=True, scope="module")
def interpretable() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    forward, backward = liger_norm.rms_norm_forward, liger_norm.rms_norm_backward
    patch.setattr(liger_norm, "rsqrt", rsqrt)
    patch.setattr(
        liger_norm,
        "rms_norm_forward",
        lambda x, w, eps, offset, *rest: forward(x, w, Scalar(eps), Scalar(offset), *rest),
    )
    patch.setattr(
        liger_norm,
        "rms_norm_backward",
        lambda dy, x, w, r, offset, *rest, **more: backward(dy, x, w, r, Scalar(offset), *rest, **more),
    )
    yield
    patch.undo()


@parametrize(one for one in collect("finetooth_liger.plugin") if one.subject.startswith("kernel"))
def test_liger_conforms(check: Callable[[], None]) -> None:
    check()


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def held(name: str, function: Any, given: list[Any], call: Callable[..., Any]) -> None:
    """Values and gradients, the second time through a kept graph too."""
    dtype = given[0].dtype
    ours = [of.clone().requires_grad_() for of in given]
    exact = [of.double().requires_grad_() for of in given]
    out, wanted = call(function, *ours), call(known.OPERATIONS[name].reference, *exact)
    slopes = drawn(*out.shape, dtype=dtype, seed=9)
    again = [torch.autograd.grad(out, ours, slopes, retain_graph=True) for _ in range(2)]
    gradients = torch.autograd.grad(wanted, exact, slopes.double())
    for first, second in zip(*again, strict=True):
        assert torch.equal(first, second)
    for got, want in ((out, wanted), *zip(again[0], gradients, strict=True)):
        assert got.dtype == dtype
        apart = float((got.double() - want).abs().max())
        assert apart <= TOLERANCE[dtype] * float(want.abs().max()), (name, apart)
    for before, after in zip(given, ours, strict=True):
        assert torch.equal(before, after)  # nothing that was given is written to


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("columns", [127, 128, 129, 1025])
def test_awkward_sizes(columns: int, dtype: torch.dtype) -> None:
    rows, weight = drawn(17, columns, dtype=dtype), drawn(columns, dtype=dtype, seed=1)
    held("rms_norm", operations.rms_norm, [rows, weight], lambda f, x, w: f(x, w, 1e-5))
    both = drawn(5, 2 * columns, dtype=dtype)
    held("gated_mlp", operations.gated_mlp, [both], lambda f, x: f(x))
    angles = drawn(7, 33, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    heads = drawn(7, 5, 66 + columns % 3, dtype=dtype)  # some numbers of a head do not turn
    held("rotary", operations.rotary, [heads], lambda f, x: f(x, cos, sin, 3))


def test_what_liger_does_not_take_is_computed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide rows over a narrow weight, other activations, one head: against float64, and never by Liger."""

    def never(*arguments: Any) -> None:
        raise AssertionError("Liger was called")

    monkeypatch.setattr(operations, "apply", never)
    rows, weight = drawn(5, 64, dtype=torch.float32), drawn(64, dtype=torch.bfloat16)
    torch.testing.assert_close(
        operations.rms_norm(rows, weight, 1e-5), known.OPERATIONS["rms_norm"].reference(rows, weight, 1e-5)
    )
    for activation in ("gelu", "gelu_tanh"):
        torch.testing.assert_close(
            operations.gated_mlp(rows, activation), known.OPERATIONS["gated_mlp"].reference(rows, activation)
        )
    assert operations.rms_norm(rows[:0], rows[0], 1e-5).shape == (0, 64)
    heads, angles = drawn(3, 2, 16, dtype=torch.float32), drawn(3, 8, dtype=torch.float32)
    for turned in (0, 1):
        torch.testing.assert_close(
            operations.rotary(heads, angles.cos(), angles.sin(), turned),
            known.OPERATIONS["rotary"].reference(heads, angles.cos(), angles.sin(), turned),
        )
