"""Kernels of plugins are tried before a GPU uses them: one that launches and writes nothing is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import PickedKernel, Wanted
from finetooth_kernels.operations import OPERATIONS
from finetooth_torch.device.kernel_trials import check_kernels

CPU = torch.device("cpu")
RMS: Any = OPERATIONS["rms_norm"].torch


class Blind(torch.autograd.Function):
    """Right forward; its backward writes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        return RMS(x, weight, 1e-5)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return torch.zeros_like(grads[0]), grads[0].sum(0)


def silent(x: Any, weight: Any, eps: float, arena: Any = None, *, residual: bool = False) -> Any:
    out = torch.zeros_like(x) + 0 * x * weight
    return (x, out) if residual else out


def half(x: Any, weight: Any, eps: float, arena: Any = None, *, residual: bool = False) -> Any:
    out = Blind.apply(x, weight) if eps == 1e-5 else RMS(x, weight, eps)
    return (x, out) if residual else out


def raises(*args: Any, **named: Any) -> Any:
    raise RuntimeError("no image for this architecture")


def check(function: Callable[..., Any], *dtypes: str, provider: str = "theirs:rms") -> None:
    kernels = {"rms_norm": PickedKernel(provider, function), "unknown": PickedKernel(provider, raises)}
    check_kernels(kernels, {"rms_norm": Wanted(dtypes)}, CPU, "Card (gfx1010)")


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (silent, r"float32 \(rows\): value 0 is up to [\d.]+ apart, expected at most [\d.e-]+ \["),
        (half, r"float32 \(rows\): gradient 0 is up to [\d.]+ apart"),
        (raises, r"float32 \(rows\): RuntimeError: no image for this architecture"),
    ],
)
def test_a_kernel_that_is_wrong_there_is_refused(function: Callable[..., Any], what: str) -> None:
    for _ in range(2):  # what was refused is tried anew
        with pytest.raises(
            PlanError, match=rf"^kernels\.rms_norm=theirs:rms: it is wrong on Card \(gfx1010\) in {what}"
        ):
            check(function, "fp32", "bf16")


def test_what_is_right_is_tried_once() -> None:
    calls = []

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(args[0].dtype)
        return RMS(*args, **named)

    check(counted, "bf16", "fp32", provider="theirs:right")
    assert set(calls) == {torch.bfloat16, torch.float32}
    before = len(calls)
    check(counted, "fp32", provider="theirs:right")
    assert len(calls) == before
    check(RMS, "fp32")  # torch's own way
