"""What the Triton kernels refuse, and why; none of it needs a GPU, or Triton."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from finetooth_hooks import install_command
from finetooth_kernels.references import linear_logprob as linear_logprob_reference
from finetooth_triton import gpu
from finetooth_triton.linear_logprob import linear_logprob_triton


@pytest.fixture
def an_a100(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had one, with Triton."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))


def test_it_takes_the_same_arguments() -> None:
    assert inspect.signature(linear_logprob_triton) == inspect.signature(linear_logprob_reference)


def test_a_head_with_an_addition_is_computed_by_torchs_operations() -> None:
    """Values and gradients of the definition, on any device."""
    draw, targets = torch.Generator().manual_seed(0), torch.tensor([4, 0, 6])
    shapes = {"hidden": (3, 5), "weight": (7, 5), "low": (3, 2), "b": (7, 2)}
    given = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes.values()]
    found = []
    for compute in (linear_logprob_triton, linear_logprob_reference):
        hidden, weight, *added = given
        logprobs = compute(hidden, weight, targets, added=tuple(added), expected=torch.ones(3)).logprobs
        found.append((logprobs, *torch.autograd.grad(logprobs.sum(), given)))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


def test_nothing_imports_triton_before_a_kernel_runs() -> None:
    code = (
        "import sys, torch\n"
        "before = 'triton' in sys.modules\n"
        "from finetooth_triton import gpu, layers, operations\n"
        "gpu.available('cpu'); operations.entropy_from_logits(torch.zeros(2, 3))\n"
        "assert ('triton' in sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cpu_is_told_why_not() -> None:
    assert gpu.available("cpu").reason == "Triton kernels run on CUDA and ROCm devices, not on cpu"


@pytest.mark.usefixtures("an_a100")
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gets_the_kernels(dtype: torch.dtype | None) -> None:
    answer = gpu.available("cuda", dtype)
    assert answer.available and "A100" in answer.reason


@pytest.mark.usefixtures("an_a100")
def test_there_is_no_float64() -> None:
    answer = gpu.available("cuda", torch.float64)
    assert not answer.available
    assert answer.reason == "Triton kernels have no float64, only float32, bfloat16, float16"


@pytest.mark.usefixtures("an_a100")
def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    answer = gpu.available("cuda")
    assert not answer.available and "compute capability 7.5, the least is 8.0" in answer.reason


@pytest.mark.usefixtures("an_a100")
def test_without_triton_the_way_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = gpu.available("cuda")
    assert not answer.available and install_command("finetooth-triton[triton]") in answer.reason


@pytest.mark.parametrize(
    ("known", "halves"),
    [({"gcnArchName": "gfx1100"}, True), ({"gcnArchName": "gfx1151:xnack-"}, True), ({"gcnArchName": "gfx1201"}, False),
     ({"gcnArchName": "gfx942:sramecc+"}, False), ({}, False)],
)  # fmt: skip
def test_rdna_3_keeps_operands_twice(monkeypatch: pytest.MonkeyPatch, known: dict[str, str], halves: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**known))
    assert gpu.in_halves(torch.device("cuda")) is halves
    assert not gpu.in_halves(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_dtype_that_nothing_takes_is_refused(dtype: torch.dtype) -> None:
    assert not gpu.available("cpu", dtype).available


def test_called_where_it_cannot_run_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    arguments = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^hidden_nd is on cpu: .*not on cpu; the chunked implementation runs there$"):
        linear_logprob_triton(*arguments)
    with pytest.raises(
        ValueError, match=r"^hidden_nd: Triton kernels have no float64.*chunked implementation takes it$"
    ):
        linear_logprob_triton(arguments[0].double(), arguments[1].double(), arguments[2])
