"""Kernels of plugins are tried before they are used: one that launches and writes nothing, or whose gradient is none,
zero, of a wrong shape or NaN, is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import KernelRequest, PickedKernel
from finetooth_kernels.operations import OPERATIONS
from finetooth_torch.compute import compute_request
from finetooth_torch.device.kernel_trials import check_kernels

CPU = torch.device("cpu")
USES = compute_request("bf16", stream=True)
FORWARD = ("logits_statistics", "accumulate", "packed_linear", "matmul_rounded_once", "cached_attention")
"""What has no gradient in a step."""
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


def as_numpy(x: Any, weight: Any, eps: float, arena: Any = None, *, residual: bool = False) -> Any:
    out = RMS(x, weight, eps).detach().float().numpy()
    return (x, out) if residual else out


def check(function: Callable[..., Any], *dtypes: str, provider: str = "theirs:rms") -> None:
    kernels = {"rms_norm": PickedKernel(provider, function), "unknown": PickedKernel(provider, raises)}
    check_kernels(kernels, {"rms_norm": KernelRequest(dtypes)}, CPU, "Card (gfx1010)")


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (silent, r"float32 \(rows\): value 0 is up to [\d.]+ apart, expected at most [\d.e-]+ \["),
        (half, r"float32 \(rows\): gradient 0 is up to [\d.]+ apart"),
        (raises, r"float32 \(rows\): RuntimeError: no image for this architecture"),
        (as_numpy, r"float32 \(rows\): TypeError: rows: result 0 is a ndarray, not a Tensor"),
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


class Broken(torch.autograd.Function):
    """The same numbers; backward, no gradient or a wrong one."""

    @staticmethod
    def forward(ctx: Any, x: Any, fault: str) -> Any:
        ctx.fault = fault
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        faults = {"zero": torch.zeros_like, "shape": lambda g: g[..., :-1], "nan": lambda g: g * float("nan")}
        return None if ctx.fault == "none" else faults[ctx.fault](grad), None


def broken(operation: str, fault: str) -> Callable[..., Any]:
    """Torch's way of an operation, with a fault in the gradient of its first input."""
    compute: Any = OPERATIONS[operation].torch

    def acme(x: Any, *given: Any, **named: Any) -> Any:
        return compute(Broken.apply(x, fault), *given, **named)

    return acme


def test_every_operation_with_a_gradient_is_tried() -> None:
    assert {name for name, use in USES.items() if not use.backward} == {*FORWARD}


@pytest.mark.parametrize("fault", ["none", "zero", "shape", "nan"])
@pytest.mark.parametrize("operation", sorted(USES.keys() - {*FORWARD}))
def test_a_gradient_that_is_wrong_is_refused(operation: str, fault: str) -> None:
    kernels = {operation: PickedKernel(f"acme-{fault}:acme", broken(operation, fault))}
    with pytest.raises(PlanError) as refused:
        check_kernels(kernels, USES, CPU, "this CPU")
    line = str(refused.value)
    assert line.startswith(f"kernels.{operation}=acme-{fault}:acme: it is wrong on this CPU in ")
    assert {"none": "is None", "zero": "apart", "shape": "gradient at index 0", "nan": "is NaN"}[fault] in line
    assert "test_torch_kernel_trials.py:" in line and line.endswith(f"(set kernels.{operation}: torch)")


@pytest.mark.parametrize("operation", FORWARD)
def test_an_engine_is_not_built_on_a_wrong_value(kit: SimpleNamespace, operation: str) -> None:
    def acme(*given: Any, **named: Any) -> Any:
        return lambda *more, **names: None

    with pytest.raises(PlanError, match=rf"^kernels\.{operation}=acme-x:acme: it is wrong on .*test_torch_kernel"):
        kit.engine(kernels={**kit.kernels(), operation: PickedKernel("acme-x:acme", acme)})
