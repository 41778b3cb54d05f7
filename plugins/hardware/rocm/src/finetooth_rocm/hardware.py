"""Facts of an AMD GPU, as a ROCm build of torch sees it; torch calls it `cuda`, like any GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks import Options
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_toolbox.host_memory import available_memory, total_memory
from finetooth_torchshared.gpus import Gpus, split_devices
from pydantic import Field

from finetooth_rocm.peaks import peak_flops

MATRIX = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""Beginnings of architectures whose matrix instructions take bf16 and fp16 (CDNA 1 to 4, RDNA 3 and 4); those before
compute fp16 fast, and bf16 only in software."""

RADEON = ("gfx10", "gfx11", "gfx12")
"""Beginnings of architectures of graphics cards (RDNA)."""
ALLOCATOR = "max_split_size_mb:128"
"""On graphics cards, whose memory is small: torch's allocator splits no block over 128 MiB, so that large tensors find
whole ones. No card has measured it. Elsewhere the allocator stays as it is: whether segments can grow depends on the
version of ROCm."""


class RocmOptions(Options):
    """Options of the hardware `rocm`."""

    index: int | None = Field(default=None, ge=0)
    """Number of the GPU, as torch counts (after HIP_VISIBLE_DEVICES). Default: all GPUs like the first one; a run
    without a strategy uses the first."""


def build(options: RocmOptions) -> RocmHardware:
    """The GPU with the index of the options, or all."""
    return RocmHardware(options.index)


class RocmHardware(Gpus):
    """See `finetooth_hooks.protocols.Hardware`."""

    maker = "AMD"

    def wrong_build(self) -> str:
        """Why this build of torch cannot compute on AMD GPUs; empty if it can."""
        version = self._torch.version
        if version.hip is None:
            return "this build of torch has no ROCm"
        return ""

    def without_kernels(self, properties: Any, architectures: Sequence[str]) -> str:
        """See `Gpus`. Code for a generic architecture (`gfx11-generic`) runs on several."""
        own = str(properties.gcnArchName).partition(":")[0]
        if not architectures or own in architectures or any("generic" in name for name in architectures):
            return ""
        return (
            f"{properties.name} is a {own}, and this build of torch is for {', '.join(architectures)}: install a build "
            "for it, or set HSA_OVERRIDE_GFX_VERSION to the version of one that is alike"
        )

    def facts(self) -> HardwareFacts:
        from finetooth_kernels.fp8 import ARCHITECTURES

        properties = self._torch.cuda.get_device_properties(self._index or 0)
        devices, others = split_devices(self._torch, self._index, _device)
        architecture = devices[0].architecture
        native = ("bf16", "fp16") if architecture.startswith(MATRIX) else ("fp16",)
        return HardwareFacts(
            name="finetooth-rocm:rocm",
            devices=devices,
            precisions=(*native, "fp32", *(("fp8",) if architecture.startswith(ARCHITECTURES) else ())),
            slow_precisions=() if "bf16" in native else ("bf16",),
            peak_flops=peak_flops(str(properties.name), architecture, int(properties.multi_processor_count)),
            host_memory=total_memory(),
            host_available=available_memory(),
            others=others,
            allocator=ALLOCATOR if architecture.startswith(RADEON) else "",
        )


def _device(index: int, properties: Any) -> Device:
    architecture = str(properties.gcnArchName).partition(":")[0]
    return Device(
        name=f"cuda:{index}",
        label=f"{properties.name} ({architecture})",
        memory=int(properties.total_memory),
        architecture=architecture,
        index=index,
    )
