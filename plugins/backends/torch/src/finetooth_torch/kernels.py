"""The providers `torch` and `reference`, which need no compiled kernels, and `ms_amp`, which is refused."""

from __future__ import annotations

from typing import Any

from finetooth_hooks.protocols import Kernel


def build_torch() -> Kernel:
    """Torch's way of each operation."""
    from finetooth_kernels.operations import OPERATIONS  # with torch, which who asks for the options does not need

    return Kernel({name: operation.torch for name, operation in OPERATIONS.items() if operation.torch is not None})


def build_reference() -> Kernel:
    """The references, but for the stream decoder's: that is the model's own code, which `backend.decoder` names."""
    from finetooth_kernels.operations import OPERATIONS  # as above

    functions = {name: operation.reference for name, operation in OPERATIONS.items() if name != "stream_decoder"}
    return Kernel(functions, missing=_missing)


def _missing(operation: str, device: str, dtype: str) -> str:
    return "mps has no float64" if device.partition(":")[0] == "mps" else ""


def build_ms_amp() -> Kernel:
    """A provider that other tools have and that serves nowhere."""
    why = "MS-AMP has no release for torch 2.9 and newer"

    def refused(*arguments: Any) -> Any:
        raise RuntimeError(why)

    return Kernel({"fp8_linear": refused}, missing=lambda operation, device, dtype: why)
