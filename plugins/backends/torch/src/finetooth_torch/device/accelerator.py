"""Makes an engine's accelerator torch's current device, and configures torch's allocator and kernels."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from finetooth_hooks import EngineError
from finetooth_torchshared.collective import is_of_line, lost

from finetooth_torch.planning.repeatable import EXPERIMENTAL, SETTING, SWITCH

CHOSEN = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Environment variables that configure torch's allocator."""


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Inside the `with` block, `device` is torch's current one in this thread: otherwise code that names no device
    (pinned memory, workspaces, other libraries' kernels) makes a context on the first GPU."""
    return torch.cuda.device(device) if device.type == "cuda" and device.index is not None else nullcontext()


def suit_allocator(device: torch.device, settings: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Configure torch's allocator; return whether that was done. Nothing changes if the user has configured it, or once
    it holds memory, which would have two kinds of segments."""
    if device.type != "cuda" or not settings or any(name in environment for name in CHOSEN):
        return False
    if torch.cuda.memory_reserved(device):
        return False
    with suppress(AttributeError, RuntimeError):
        _tell(settings)
        return True
    return False


def suit_products(device: torch.device, *, tf32: bool) -> None:
    """Fix how a GPU sums products and convolutions, against torch's defaults and settings of other libraries: half
    precision in float32, and float32 in float32 unless the recipe asks for TF32. It applies to the whole process."""
    if device.type != "cuda":
        return
    products: Any = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = False
    products.allow_fp16_reduced_precision_reduction = False
    products.allow_fp16_accumulation = False
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # of convolutions, which torch rounds unless told otherwise


def suit_attention(architecture: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Allow torch's fused attention on AMD GPUs for which torch calls it experimental, unless the user has set the
    variable. torch reads it at its first attention."""
    if architecture in EXPERIMENTAL:
        environment.setdefault(SWITCH, "1")


def suit_repeats(*, deterministic: bool, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make a GPU compute the same bits each time, or not. It applies to the whole process."""
    if deterministic:
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
        warnings.filterwarnings("ignore", _UNDETERMINED.pattern)  # where `lenient`
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # for debugging, and slow
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def lenient() -> Iterator[None]:
    """Inside the `with` block, operations without a deterministic version may run: sampling needs one to sum
    probabilities."""
    strict = torch.get_deterministic_debug_mode() == 2
    if strict:
        torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        if strict:
            torch.set_deterministic_debug_mode("error")


_UNDETERMINED = re.compile(r"(\S+) does not have a deterministic implementation")


_ANOMALY = re.compile(r"Function '(\w+)' returned nan values in its (\d+)th output")


def explained(error: BaseException) -> EngineError | None:
    """One line for torch's error: an operation without a deterministic version, a gradient that is NaN, a GPU that is
    busy, too old or failed, or a lost rank; None for another error."""
    if is_of_line(error):
        return lost(error)
    said = str(error) if isinstance(error, RuntimeError) else ""
    if named := _UNDETERMINED.search(said):
        return EngineError(
            f"{SETTING}: torch's {named[1]} cannot compute the same bits each time on this device",
            action=f"set {SETTING}: false; what is resumed then agrees to rounding",
        )
    if "MPS framework doesn't support float64" in str(error):
        return EngineError(
            "the recipe computes something in float64, which torch's device mps has not",
            action="set hardware: cpu, or take what needs no float64 (optimizer: adamw, adapter.init: default)",
        )
    if "busy or unavailable" in said:
        return EngineError(
            "hardware: another process has the GPU for itself, or it does not answer (torch: busy or unavailable)",
            action="end the other program, pick another GPU with hardware.index, or set hardware: cpu",
        )
    if "no kernel image" in said or "invalid device function" in said:
        return EngineError(
            "hardware: this build of torch, or a library of kernels, has none for this GPU (torch: no kernel image)",
            action="install a build for it, or set hardware: cpu",
        )
    if named := _ANOMALY.search(said):
        return EngineError(
            f"backend.detect_anomaly: {named[1]} gives NaN, the gradient of its input {int(named[2]) + 1}",
            action="look at the lines of the forward pass that torch printed above",
        )
    if isinstance(error, torch.AcceleratorError):
        return EngineError(
            f"hardware: the GPU or its driver failed (torch: {said.partition(chr(10))[0]})",
            action="start a new process with ft resume; if that fails too, look at the driver's log (dmesg), or set "
            "hardware: cpu",
        )
    return None


def _tell(settings: str) -> None:
    """The function is private in torch, and has moved."""
    inner: Any = torch._C
    try:
        inner._accelerator_setAllocatorSettings(settings)
    except AttributeError:  # an older torch
        memory: Any = torch.cuda.memory
        memory._set_allocator_settings(settings)
