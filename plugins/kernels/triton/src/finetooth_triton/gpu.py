"""Whether Triton kernels can run on a device, and in which tiles. Imports Triton only when a kernel is about to run."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from finetooth_kernels.triton_devices import SUPPORTED_DTYPES, available, interpreted, on, unsupported
from torch import Tensor

__all__ = [
    "SUPPORTED_DTYPES",
    "Tiles",
    "available",
    "check_runs",
    "in_halves",
    "interpreted",
    "maker",
    "on",
    "product_precision",
    "tiles_for",
    "tiles_within",
]

_LARGE_SHARED_MEMORY = 160 * 2**10
"""Bytes of shared memory per block that data-centre NVIDIA devices offer since the A100 (163 KiB) and others do not."""


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its matrix product."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 16
    """Blocks of rows that walk through the vocabulary together, so that their tiles of the weight stay in the cache."""


FULL_PRECISION_TILES = Tiles(64, 64, 32, warps=4, stages=2)
LARGE_TILES = Tiles(128, 256, 64, warps=8, stages=3)
SMALL_TILES = Tiles(128, 128, 32, warps=8, stages=2)


def check_runs(name: str, tensor: Tensor) -> None:
    """Raise ValueError, naming the argument `name`, where kernels cannot take `tensor` as it is."""
    if tensor.dtype not in SUPPORTED_DTYPES:
        raise ValueError(f"{name}: {unsupported(tensor.dtype)}; the chunked implementation takes it")
    if interpreted() and tensor.device.type == "cpu" and importlib.util.find_spec("triton") is not None:
        return
    answer = available(tensor.device, tensor.dtype)
    if not answer.available:
        raise ValueError(f"{name} is on {tensor.device}: {answer.reason}; the chunked implementation runs there")


def tiles_within(dtype: torch.dtype, shared_memory: int) -> Tiles:
    """Tiles for a device, by the bytes of shared memory that it offers a block."""
    if dtype == torch.float32:
        return FULL_PRECISION_TILES
    return LARGE_TILES if shared_memory >= _LARGE_SHARED_MEMORY else SMALL_TILES


def tiles_for(dtype: torch.dtype, device: torch.device) -> Tiles:
    """Tiles that fit `device`."""
    # Type stubs, ROCm builds and the CPU lack the attribute; small tiles fit every GPU there is.
    known = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return tiles_within(dtype, getattr(known, "shared_memory_per_block_optin", 0))


def maker(device: torch.device) -> Literal["nvidia", "cdna", "rdna"]:
    """Who made a GPU, and of AMD's which line: they differ in registers and in what their matrix units are given."""
    if torch.version.hip is None or device.type != "cuda":
        return "nvidia"
    return "cdna" if getattr(torch.cuda.get_device_properties(device), "warp_size", 64) == 64 else "rdna"


def in_halves(device: torch.device) -> bool:
    """Whether both halves of a warp keep what a product multiplies, as on RDNA 3: then a kernel that fills its
    registers fetches nothing in advance (`num_stages=1`)."""
    known = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return str(getattr(known, "gcnArchName", "")).startswith("gfx11")


def product_precision(dtype: torch.dtype) -> str:
    """How to multiply float32: as torch does, so TensorFloat-32 only where torch was told to."""
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    return "ieee" if torch.backends.cuda.matmul.fp32_precision in ("none", "ieee") else "tf32"
