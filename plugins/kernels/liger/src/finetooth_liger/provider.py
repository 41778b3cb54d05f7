"""The provider `liger`."""

from __future__ import annotations

from finetooth_hooks import install_command
from finetooth_hooks.protocols import Kernel


def build() -> Kernel:
    """Liger's kernels; Liger and Triton are imported when the first one runs."""
    from finetooth_liger import operations

    return Kernel(
        {"rms_norm": operations.rms_norm, "rotary": operations.rotary, "gated_mlp": operations.gated_mlp},
        "Liger's kernels, compiled for the device when they first run",
        missing,
    )


def missing(operation: str, device: str, dtype: str) -> str:
    """Why Liger's kernels cannot run there; empty if they can. Interpreted ones run on a CPU, for tests."""
    import importlib.util

    import torch
    from finetooth_kernels import triton_devices

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if triton_devices.interpreted() and torch.device(device).type == "cpu":
        reason = "Triton's interpreter multiplies bf16 as if it were integers" if dtype == "bf16" else ""
    else:
        answer = triton_devices.available(device, dtypes.get(dtype))
        reason = "" if answer.available else answer.reason
    if reason or importlib.util.find_spec("liger_kernel") is not None:
        return reason
    return f"liger-kernel is not installed; {install_command('finetooth[liger]')}"
