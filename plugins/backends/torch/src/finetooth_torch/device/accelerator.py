"""The accelerator that an engine computes on: torch's current device while it works, and an allocator that suits it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

CHOSEN = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables by which a user tells torch's allocator what to do."""


def current(device: torch.device) -> AbstractContextManager[Any]:
    """While entered, `device` is torch's current one in this thread: code that names no device (pinned
    memory, workspaces, kernels of others) else makes a context on the first GPU."""
    return torch.cuda.device(device) if device.type == "cuda" and device.index is not None else nullcontext()


def suit_allocator(device: torch.device, settings: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell torch's allocator; whether that was done. Not where the user has told it something, nor once it holds
    memory, whose segments would be of two kinds."""
    if device.type != "cuda" or not settings or any(name in environment for name in CHOSEN):
        return False
    if torch.cuda.memory_reserved(device):
        return False
    with suppress(AttributeError, RuntimeError):
        _tell(settings)
        return True
    return False


def suit_products(device: torch.device, *, tf32: bool) -> None:
    """Fix how a GPU sums products, whatever torch's defaults are or another library set: those of half precision in
    float32 to the end, and those of float32 in float32, unless TF32 was asked for. It holds for the whole process."""
    if device.type != "cuda":
        return
    products: Any = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def _tell(settings: str) -> None:
    """torch keeps the function to itself, and has moved it."""
    inner: Any = torch._C
    try:
        inner._accelerator_setAllocatorSettings(settings)
    except AttributeError:  # a torch before that
        memory: Any = torch.cuda.memory
        memory._set_allocator_settings(settings)
