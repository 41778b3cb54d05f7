"""The conformance kit notices kernels that are wrong: each provider here is torch's, but for one mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from finetooth_hooks import Context, Kernel, NoOptions, Serves
from finetooth_hooks.protocols import Kernel as Built
from finetooth_kernels.operations import OPERATIONS
from finetooth_kernels.trials import TRIALS
from finetooth_kit import collect, run_check, run_checks
from torch import Tensor

torch_norm = OPERATIONS["rms_norm"].torch
assert torch_norm is not None


def norm(change: Callable[..., Any]) -> Callable[..., Any]:
    """Torch's norm of rows with a change to what it is given and what comes out."""

    def rms_norm(x: Tensor, weight: Tensor, eps: float, arena: Any = None, *, residual: bool = False) -> Any:
        y = change(x, weight, eps)
        return (x, y) if residual else y

    return rms_norm


class Uniform(torch.autograd.Function):
    """Right in its values; its backward pass takes every incoming gradient for 1."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ones_like(grad)


def plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    found: Tensor = torch_norm(x, weight, eps)
    return found


def as_stored(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Takes rows for contiguous."""
    return plain(x.as_strided(x.shape, torch.empty(x.shape).stride()), weight, eps)


def hiding(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return plain(x, weight, eps).nan_to_num()


def wide_in_scoring(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = plain(x, weight, eps)
    return y if y.requires_grad else y.float()


def no_rows_refused(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.shape[0] == 0:
        raise RuntimeError("empty grid")
    return plain(x, weight, eps)


MISTAKES: dict[str, tuple[Callable[..., Any], str]] = {
    "right": (plain, ""),
    "ignores incoming gradients": (
        lambda x, w, e: Uniform.apply(plain(x, w, e)),  # type: ignore[no-untyped-call]
        "kernels_agree_with_the_reference",
    ),
    "leaves eps out": (lambda x, w, e: plain(x, w, 0.0), "kernels_agree_with_the_reference"),
    "takes rows for contiguous": (as_stored, "kernels_take_any_strides"),
    "refuses no rows": (no_rows_refused, "kernels_take_no_rows"),
    "hides NaN": (hiding, "nan_shows_where_it_is_seen"),
    "another dtype in scoring": (wide_in_scoring, "results_have_the_declared_dtype"),
}


HEAD = OPERATIONS["linear_logprob"].torch
assert HEAD is not None


def without_addition(*given: Any, added: Any = None, **named: Any) -> Any:
    return HEAD(*given, **named)


def addition_without_gradients(*given: Any, added: Any = None, **named: Any) -> Any:
    return HEAD(*given, added=added and tuple(factor.detach() for factor in added), **named)


@pytest.mark.parametrize(
    ("compute", "features", "notices"),
    [
        (HEAD, {"added"}, False), (without_addition, {"added"}, True), (addition_without_gradients, {"added"}, True),
        (without_addition, (), False),
    ],
)  # fmt: skip
def test_what_a_provider_declares_beyond_the_operation_is_tried(
    compute: Callable[..., Any], features: Any, notices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that it does not declare."""
    module = ModuleType("acme_heads")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module)["build"] = lambda: Built({"linear_logprob": compute})
    serves = Serves(operation="linear_logprob", dtypes=frozenset({"fp32"}), result="full", features=frozenset(features))
    entry = Kernel(name="acme", build="acme_heads:build", summary="a head", serves=(serves,))
    (check,) = [check for check in collect(entry) if check.name == "kernels_agree_with_the_reference"]
    agreed = run_check(check)
    assert (agreed.status == "failed") == notices, agreed
    assert not notices or "an addition to the head" in str(agreed), agreed


@pytest.fixture(params=list(MISTAKES))
def mistake(request: pytest.FixtureRequest) -> Iterator[tuple[Kernel, str]]:
    """An entry whose builder lives in a module of its own, and the check that must fail."""
    change, check = MISTAKES[request.param]
    module = ModuleType("mistaken_kernels")

    def build(options: NoOptions, context: Context) -> Built:
        """The provider."""
        return Built({"rms_norm": norm(change)})

    vars(module)["build"] = build
    sys.modules[module.__name__] = module
    serves = Serves(operation="rms_norm", dtypes=frozenset({"fp32", "bf16"}))
    yield Kernel(name="acme", build="mistaken_kernels:build", summary="one mistake", serves=(serves,)), check
    del sys.modules[module.__name__]


def test_a_mistake_is_noticed(mistake: tuple[Kernel, str]) -> None:
    entry, check = mistake
    failed = {result.check for result in run_checks(entry) if result.status == "failed"}
    assert (check in failed) if check else not failed, failed


def test_every_operation_is_tried() -> None:
    assert OPERATIONS.keys() == TRIALS.keys()
