"""Facts of an Apple chip's GPU, as torch tells them."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from typing import Any

from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_toolbox.host_memory import available_memory, total_memory


class MpsHardware:
    """See `finetooth_hooks.protocols.Hardware`.

    The memory of a Mac is shared by its processors: the device's is what Metal recommends to use of it, the rest stays
    with the system.

    Args:
        torch: gives the framework; tests pass a stand-in.
        system: of the machine, `Darwin` on a Mac.
    """

    def __init__(
        self,
        torch: Callable[[], Any] = lambda: importlib.import_module("torch"),
        system: Callable[[], str] = platform.system,
    ) -> None:
        self._torch, self._system = torch, system

    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""
        mps = self._torch().backends.mps
        if mps.is_available():
            return ""
        if self._system() != "Darwin":
            return f"no Mac (this is {self._system()})"
        return "torch finds no Metal device" if mps.is_built() else "this build of torch has no Metal"

    def facts(self) -> HardwareFacts:
        torch = self._torch()
        memory, whole = int(torch.mps.recommended_max_memory()), total_memory()
        name = getattr(torch.backends.mps, "get_name", lambda: "Apple GPU")()  # not in every torch
        label = f"{name} ({whole / 2**30:.0f} GiB, {memory / 2**30:.0f} GiB of them for it)"
        return HardwareFacts(
            name="finetooth-mps:mps",
            devices=(Device("mps:0", label, memory, available=min(memory, available_memory() or memory)),),
            host_memory=whole,
            host_available=available_memory(),
            precisions=("bf16", "fp16", "fp32"),
        )
