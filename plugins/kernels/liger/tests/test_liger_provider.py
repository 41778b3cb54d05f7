"""Where the provider serves and why not elsewhere; none of it needs a GPU, Triton or Liger."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from finetooth_hooks import install_command
from finetooth_liger.provider import missing


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an A100, Triton and Liger were here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_it_serves_on_a_gpu(dtype: str) -> None:
    assert missing("rms_norm", "cuda:0", dtype) == ""


@pytest.mark.usefixtures("installed")
def test_it_says_why_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing("rms_norm", "cpu", "fp32") == "Triton kernels run on CUDA and ROCm devices, not on cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 7.5, the least is 8.0" in missing("rms_norm", "cuda:0", "fp32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "liger_kernel" else real("json"))
    assert (
        missing("rms_norm", "cuda:0", "fp32") == f"liger-kernel is not installed; {install_command('finetooth[liger]')}"
    )


def test_nothing_imports_liger_before_a_kernel_runs() -> None:
    code = (
        "import sys, torch\n"
        "from finetooth_liger.provider import build\n"
        "built = build()\n"
        "x = torch.ones(2, 4)\n"
        "assert torch.equal(built.functions['gated_mlp'](x), torch.nn.functional.silu(x[:, :2]))\n"
        "assert 'liger_kernel' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
