"""Facts of the host CPU, read from the system; no framework is imported."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_toolbox.host_memory import available_memory, sysctl, total_memory

BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""Instruction sets whose matrix products take bf16; `bf16` is Arm's own name. Measured on AVX512-BF16: a bf16 GEMM is
about four times as fast as an fp32 one, whereas without such instructions it is slower."""

FP16_FLAGS = ("amx_fp16", "avx512_fp16")
"""Instruction sets whose matrix products take fp16."""


WIDEST = (("avx512f", "avx512"), ("avx2", "avx2"), ("asimd", "neon"))
"""The widest vectors of a CPU by the flag that says so, and what kernels for them are called."""


BEYOND = {"AVX2": ("avx512", "amx"), "AVX512_CORE": ("avx512_bf16", "avx512_fp16", "amx")}
"""What oneDNN, which multiplies for torch, leaves alone where `ONEDNN_MAX_CPU_ISA` says so: beginnings of flags."""


class CpuHardware:
    """See `finetooth_hooks.protocols.Hardware`.

    Args:
        flags: returns the names of the CPU's instruction sets.
        memory: returns the machine's memory in bytes.
        cores: returns how many cores this process may use.
        available: returns the bytes that this process could hold now; None where the system does not tell.
    """

    def __init__(
        self,
        flags: Callable[[], frozenset[str]] | None = None,
        memory: Callable[[], int] | None = None,
        cores: Callable[[], int] | None = None,
        available: Callable[[], int | None] | None = None,
    ) -> None:
        self._flags, self._memory, self._cores = flags or usable_flags, memory or total_memory, cores or usable_cores
        self._available = available or available_memory

    def missing(self) -> str:
        """Empty: every machine has one."""
        return ""

    def facts(self) -> HardwareFacts:
        flags, cores = self._flags(), self._cores()
        bf16 = next((flag for flag in BF16_FLAGS if flag in flags), None)
        fp16 = any(flag in flags for flag in FP16_FLAGS)
        named = bf16 or next((flag for flag in ("avx512f", "avx2", "asimd") if flag in flags), platform.machine())
        memory, available = self._memory(), self._available()
        available = None if available is None else min(available, memory)
        label = f"{cores} CPU {'core' if cores == 1 else 'cores'} ({named})"
        widest = next((name for flag, name in WIDEST if flag in flags), platform.machine())
        return HardwareFacts(
            name="finetooth-cpu:cpu",
            devices=(Device("cpu", label, memory, widest, available=available),),
            host_memory=memory,
            host_available=available,
            precisions=(*(("bf16",) if bf16 else ()), "fp32", *(("fp16",) if fp16 else ())),
            slow_precisions=(*(() if bf16 else ("bf16",)), *(() if fp16 else ("fp16",))),
        )


def usable_flags() -> frozenset[str]:
    """Those of `cpu_flags` that products may use."""
    beyond = BEYOND.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), ())
    return frozenset(flag for flag in cpu_flags() if not flag.startswith(beyond))


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first core, under Linux's names; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
        return frozenset()
    if platform.system() == "Darwin":  # Apple silicon: hw.optional.arm.FEAT_BF16: 1
        flags = {"asimd"}
        if sysctl("hw.optional.arm.FEAT_BF16") == "1":
            flags.add("bf16")
        return frozenset(flags) if platform.machine() == "arm64" else frozenset({"avx2"})
    return frozenset()


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
