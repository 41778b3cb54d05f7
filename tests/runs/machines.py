"""Machines that are made up: what torch, the hardware plugins and the packages would say there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_advise.made_up_machines import MAC_BACKEND, mac
from finetooth_cuda.hardware import CudaHardware
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_rocm.hardware import RocmHardware

GIB = 2**30
LIBRARIES = ("triton", "torchao", "liger_kernel")
"""Modules that a machine has or lacks, whatever is installed here."""


@dataclass(frozen=True)
class Machine:
    """One that is made up.

    Attributes:
        gpu: as torch names it; empty: a CPU or a Mac.
        architecture: compute capability of NVIDIA, `gfx...` of AMD, flags of a CPU's instructions.
        memory: GiB of a device.
        host: GiB around it.
        units: compute units of AMD's.
        packages: that are installed there and not here.
        backend: of the recipe.
        build: architectures for which torch was built; empty: all.
        without: modules of `LIBRARIES` that it lacks.
        trouble: what torch says when it is asked for the GPU.
        free: GiB that other processes leave; None: all.
    """

    gpu: str
    architecture: tuple[int, int] | str
    memory: float
    host: int = 128
    count: int = 1
    units: int = 0
    packages: tuple[str, ...] = ()
    backend: str = "torch"
    build: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    trouble: str = ""
    free: float | None = None

    @property
    def amd(self) -> bool:
        return isinstance(self.architecture, str) and self.architecture.startswith("gfx")


@contextmanager
def on(machine: Machine) -> Iterator[HardwareFacts]:
    """torch, Triton and the packages as they are there."""
    if not machine.gpu:
        size = round(machine.memory * GIB)
        label = f"16 CPU cores, {size / 1e9:.0f} GB"
        cpu = HardwareFacts("finetooth-cpu:cpu", (Device("cpu", label, size, "avx512_bf16"),), ("bf16", "fp32"))
        yield mac(size) if machine.backend == MAC_BACKEND else cpu
        return
    with pytest.MonkeyPatch.context() as patch:
        as_torch_sees(machine, patch)
        facts = (RocmHardware(torch=torch) if machine.amd else CudaHardware(torch=torch)).facts()
        yield facts.lasting


def as_torch_sees(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    """Let torch tell of the machine's GPUs, and importlib of its packages."""
    major, minor = (0, 0) if isinstance(machine.architecture, str) else machine.architecture
    told = SimpleNamespace(
        name=machine.gpu, major=major, minor=minor, total_memory=round(machine.memory * GIB),
        gcnArchName=machine.architecture, multi_processor_count=machine.units,
    )  # fmt: skip
    free = told.total_memory if machine.free is None else round(machine.free * GIB)

    def properties(index: int) -> SimpleNamespace:
        if machine.trouble:
            raise torch.AcceleratorError(machine.trouble)
        return told

    cuda: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True, "device_count": lambda: machine.count, "memory_reserved": lambda index: 0,
        "get_device_properties": properties, "get_device_name": lambda index: machine.gpu,
        "get_device_capability": lambda index: (major, minor), "mem_get_info": lambda index: (free, told.total_memory),
        "get_arch_list": lambda: list(machine.build),
    }  # fmt: skip
    for name, answer in cuda.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(torch.version, "hip", "7.0.51831" if machine.amd else None)
    patch.setattr(torch.version, "cuda", None if machine.amd else "13.0")
    found, real = SimpleNamespace(), importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        asks = sys._getframe(1).f_globals["__name__"]
        if name not in LIBRARIES or not asks.startswith("finetooth"):  # transformers would import what it is told of
            return real(name, package)
        return None if name in machine.without else found

    patch.setattr(importlib.util, "find_spec", find_spec)
    patch.setattr("finetooth_torch.planning.compilation.find_spec", find_spec)
    patch.setattr("finetooth_toolbox.attention_choice.missing_packages", lambda names: missing(names, machine))
    imported = SimpleNamespace(import_module=lambda name: SimpleNamespace(flash_attn_varlen_func=None))
    patch.setattr("finetooth_flash.attention.importlib", imported)
    patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000 * GIB))
    for maker in ("cuda", "rocm"):
        for of_host in ("total_memory", "available_memory"):
            patch.setattr(f"finetooth_{maker}.hardware.{of_host}", lambda: machine.host * GIB)


def missing(names: tuple[str, ...], machine: Machine) -> str:
    """Which package is not installed there."""
    lacking = [name for name in names if not name.startswith("torch") and name not in machine.packages]
    return f"package {lacking[0]} is not installed" if lacking else ""
