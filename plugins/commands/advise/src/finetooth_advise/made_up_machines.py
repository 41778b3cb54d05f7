"""Machines of which only the memory is known, to ask what would fit one. Imports no framework."""

from __future__ import annotations

from finetooth_hooks.protocols import Device, HardwareFacts


def accelerator(memory: int, *, host: int = 0) -> HardwareFacts:
    """An accelerator of which only the memory is known, in bytes.

    Args:
        host: memory of the machine around it; 0 is unknown.
    """
    device = Device("cuda:0", f"an accelerator with {memory / 1e9:.4g} GB", memory)
    return HardwareFacts("an accelerator", (device,), ("bf16", "fp16", "fp32"), host_memory=host)


def processor(memory: int) -> HardwareFacts:
    """A processor with so many bytes, that computes bf16."""
    return HardwareFacts("a processor", (Device("cpu", f"a CPU with {memory / 1e9:.4g} GB", memory),), ("bf16", "fp32"))


MAC_BACKEND = "mlx"
"""The backend that computes on an Apple chip."""


def mac(memory: int) -> HardwareFacts:
    """A Mac with an Apple chip and so many bytes. Its GPU may take two thirds of them, above 36 GB three quarters, as
    macOS recommends (`recommendedMaxWorkingSetSize`)."""
    usable = memory * 3 // 4 if memory > 36e9 else memory * 2 // 3
    label = f"a Mac with {memory / 1e9:.4g} GB, {usable / 1e9:.3g} GB of them for the GPU"
    return HardwareFacts("a Mac", (Device("gpu", label, usable),), ("bf16", "fp32", "fp16"), host_memory=memory)
