"""Facts of an Apple chip, as MLX tells them."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from typing import Any

from finetooth_hooks import install_command
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_toolbox.host_memory import available_memory, total_memory


class MetalHardware:
    """See `finetooth_hooks.protocols.Hardware`.

    The memory of a Mac is shared by its processors: the device's is what Metal recommends to use of it, the rest stays
    with the system.

    Args:
        machine: system and processor, (`Darwin`, `arm64`) where there can be such a chip.
        core: gives the module `mlx.core`; tests pass a stand-in.
    """

    def __init__(
        self,
        machine: Callable[[], tuple[str, str]] = lambda: (platform.system(), platform.machine()),
        core: Callable[[], Any] = lambda: importlib.import_module("mlx.core"),
    ) -> None:
        self._machine, self._core = machine, core

    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""
        if self._machine() != ("Darwin", "arm64"):
            return f"no Apple silicon (this is {' '.join(self._machine())})"
        try:
            core = self._core()
        except ImportError as error:
            return f"MLX is not installed ({error}): {install_command('finetooth[mlx]')}"
        return "" if core.metal.is_available() else "MLX finds no Metal device"

    def facts(self) -> HardwareFacts:
        device = self._core().device_info()
        whole = int(device.get("memory_size") or total_memory())
        memory = int(device.get("max_recommended_working_set_size") or whole)
        available = available_memory()
        name, usable = device.get("device_name", "Apple GPU"), f"{memory / 2**30:.0f} GiB of them for it"
        label = f"{name} ({whole / 2**30:.0f} GiB, {usable})"
        return HardwareFacts(
            name="finetooth-metal:metal",
            devices=(Device("gpu", label, memory, str(device.get("architecture", ""))),),
            host_memory=whole,
            host_available=available,
            precisions=("bf16", "fp32", "fp16"),
        )
