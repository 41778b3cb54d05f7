"""Facts of an NVIDIA GPU, as torch sees it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Any

from finetooth_hooks import Options
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_toolbox.host_memory import available_memory, total_memory
from finetooth_torchshared.gpus import Gpus, split_devices
from pydantic import Field

from finetooth_cuda.peaks import peak_flops

BF16_SINCE = (8, 0)
"""Compute capability from which tensor cores take bf16 (Ampere)."""

FP16_SINCE = (7, 0)
"""Compute capability from which tensor cores take fp16 (Volta)."""


class CudaOptions(Options):
    """Options of the hardware `cuda`."""

    index: int | None = Field(default=None, ge=0)
    """Number of the GPU, as torch counts (after CUDA_VISIBLE_DEVICES). Default: all GPUs like the first one; a run
    without a strategy uses the first."""


def build(options: CudaOptions) -> CudaHardware:
    """The GPU with the index of the options, or all."""
    return CudaHardware(options.index)


class CudaHardware(Gpus):
    """See `finetooth_hooks.protocols.Hardware`.

    fp32 stays fp32: the backend does not round matrix products to TF32 unless `backend.tf32` asks for it, so that
    results agree with other devices; bf16 is the fast precision.
    """

    maker = "NVIDIA"

    def wrong_build(self) -> str:
        """Why this build of torch cannot compute on NVIDIA GPUs; empty if it can."""
        version = self._torch.version
        if version.hip is not None:
            return "this build of torch is for AMD GPUs, which hardware: rocm is for (finetooth-rocm)"
        if version.cuda is None:
            return "this build of torch has no CUDA"
        return ""

    def without_kernels(self, properties: Any, architectures: Sequence[str]) -> str:
        """See `Gpus`. Machine code (`sm_86`) runs from its compute capability on up to the next major version, and PTX
        (`compute_90`) on all later GPUs (CUDA C++ Programming Guide, sections 5.1 and 5.2)."""
        has = 10 * properties.major + properties.minor
        known = [
            (kind, int(number)) for kind, _, number in (a.partition("_") for a in architectures) if number.isdigit()
        ]
        if not known or any(n <= has and (kind == "compute" or n // 10 == has // 10) for kind, n in known):
            return ""
        numbers = sorted({n for _, n in known})
        return (
            f"{properties.name} has compute capability {properties.major}.{properties.minor}, and this build of torch "
            f"is for {numbers[0] / 10} to {numbers[-1] / 10}: install a build for it"
        )

    def facts(self) -> HardwareFacts:
        from finetooth_kernels.fp8 import LEAST_CAPABILITY

        properties = self._torch.cuda.get_device_properties(self._index or 0)
        capability = (properties.major, properties.minor)
        devices, others = split_devices(self._torch, self._index, _device)
        native = (("bf16", BF16_SINCE), ("fp16", FP16_SINCE))
        precisions = tuple(name for name, since in native if capability >= since)
        eight = ("fp8",) if capability >= LEAST_CAPABILITY else ()
        return HardwareFacts(
            name="finetooth-cuda:cuda",
            devices=devices,
            host_memory=total_memory(),
            host_available=available_memory(),
            precisions=(*precisions, "fp32", *eight),
            slow_precisions=tuple(name for name, since in native if capability < since),
            peak_flops=peak_flops(str(properties.name)),
            others=others,
            allocator=allocator(),
        )


def allocator(release: str = platform.release()) -> str:
    """What suits torch's allocator: segments that grow, since the shapes of micro-batches differ and blocks of one size
    else lie idle while another is asked for. Only Linux itself has them, not the one inside Windows.

    Args:
        release: of the system's kernel.
    """
    return "expandable_segments:True" if sys.platform == "linux" and "microsoft" not in release.lower() else ""


def _device(index: int, properties: Any) -> Device:
    return Device(
        name=f"cuda:{index}",
        label=f"{properties.name} (compute capability {properties.major}.{properties.minor})",
        memory=int(properties.total_memory),
        architecture=f"sm_{properties.major}{properties.minor}",
        index=index,
    )
