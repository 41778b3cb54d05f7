"""Whether Triton kernels of any provider can run on a device. Imports torch, and never Triton."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import Any

import torch
from finetooth_hooks.errors import install_command

from finetooth_kernels.contract import Availability

__all__ = ["SUPPORTED_DTYPES", "available", "interpreted", "obstacle", "on", "unsupported"]

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types that the kernels multiply; all of them accumulate in float32."""

_LEAST_CAPABILITY = (8, 0)
"""Compute capability from which NVIDIA devices multiply bfloat16."""

SILENT = "gfx101"
"""Beginning of the architectures of RDNA 1, on which kernels launch and write nothing (unsloth issue 11614)."""
UNKNOWN = ("gfx6", "gfx7", "gfx8", "gfx900", "gfx902")
"""Beginnings of those before Vega 20, for which Triton 3.7 compiles nothing (`unsupported target`)."""


def interpreted() -> bool:
    """Whether Triton was told to interpret its kernels, which works on a CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def available(device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Availability:
    """Say whether Triton kernels can run on `device`, for inputs of `dtype` if one is given."""
    kind = torch.device(device).type
    if kind != "cuda":
        return Availability(False, f"Triton kernels run on CUDA and ROCm devices, not on {kind}")
    if not torch.cuda.is_available():
        return Availability(False, "torch sees no CUDA or ROCm device")
    if dtype is not None and dtype not in SUPPORTED_DTYPES:
        return Availability(False, unsupported(dtype))
    name = torch.cuda.get_device_name(device)
    if torch.version.hip is None and (capability := torch.cuda.get_device_capability(device)) < _LEAST_CAPABILITY:
        return Availability(False, f"{name} has compute capability {capability[0]}.{capability[1]}, the least is 8.0")
    if torch.version.hip is not None and (why := obstacle(torch.cuda.get_device_properties(device).gcnArchName, name)):
        return Availability(False, why)
    if importlib.util.find_spec("triton") is None:
        return Availability(False, f"triton is not installed; {install_command('finetooth-triton[triton]')}")
    return Availability(True, f"Triton compiles its kernels for {name}")


def obstacle(architecture: str, label: str) -> str:
    """Why Triton compiles nothing that works for an AMD GPU; empty if it does."""
    if architecture.startswith(SILENT):
        return f"what Triton compiles writes nothing on {label}, an RDNA 1"
    return f"Triton does not compile for {architecture}" if architecture.startswith(UNKNOWN) else ""


def unsupported(dtype: torch.dtype) -> str:
    """Why kernels do not take a dtype."""
    names = ", ".join(str(known).removeprefix("torch.") for known in SUPPORTED_DTYPES)
    return f"Triton kernels have no {str(dtype).removeprefix('torch.')}, only {names}"


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context to launch in: Triton launches on the current device, which may not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
