"""The host CPU as MLX computes on it."""

from __future__ import annotations

import os
import platform

from finetooth_hooks import install_command
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_toolbox.host_memory import available_memory, total_memory


class MlxCpu:
    """See `finetooth_hooks.protocols.Hardware`."""

    def missing(self) -> str:
        """Why MLX does not compute here; empty if it does."""
        try:
            import mlx.core  # noqa: F401
        except ImportError as error:
            return f"MLX is not installed ({error}): {install_command('finetooth[mlx]')}"
        return ""

    def facts(self) -> HardwareFacts:
        memory, available = total_memory(), available_memory()
        available = None if available is None else min(available, memory)
        cores = os.cpu_count() or 1
        label = f"{cores} CPU {'core' if cores == 1 else 'cores'} ({platform.machine()}), by MLX"
        return HardwareFacts(
            name="finetooth-mlx:mlxcpu",
            devices=(Device("cpu", label, memory, platform.machine(), available=available),),
            host_memory=memory,
            host_available=available,
            precisions=("fp32",),
            slow_precisions=("bf16", "fp16"),
        )
