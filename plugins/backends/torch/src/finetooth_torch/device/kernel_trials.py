"""Tries kernels of plugins on the run's device before the engine uses them: on a GPU for which it was not compiled, a
kernel may write nothing, and zero gradients raise no error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import KernelRequest, PickedKernel
from finetooth_kernels.operations import OPERATIONS
from finetooth_kernels.trials import first_difference, trials
from finetooth_toolbox import blame

from finetooth_torch.device.accelerator import lenient
from finetooth_torch.device.exhaustion import is_exhaustion
from finetooth_torch.precision import DTYPES

ROWS, COLUMNS = 33, 65
"""One row and one column more than a block."""
_RIGHT: set[tuple[str, str, torch.dtype, torch.device]] = set()
"""Trials of this process: provider, operation, dtype and device."""


def check_kernels(
    kernels: Mapping[str, PickedKernel], wanted: Mapping[str, KernelRequest], device: torch.device, label: str
) -> None:
    """Compare values and gradients of a few rows with the float64 reference; torch's own operations are not tried.

    Args:
        wanted: the dtypes of each operation, and whether it needs gradients.
        label: names the device.

    Raises:
        PlanError: a kernel's result differs, or it fails for another reason than memory.
    """
    for name, kernel in kernels.items():
        if name not in OPERATIONS or name not in wanted or kernel.function is OPERATIONS[name].torch:
            continue
        for dtype in (DTYPES[precision] for precision in wanted[name].dtypes):
            tried = (kernel.provider, name, dtype, device)
            if tried not in _RIGHT:
                _check(kernel, name, wanted[name], dtype, device, label)
                _RIGHT.add(tried)


def _check(
    kernel: PickedKernel, name: str, wanted: KernelRequest, dtype: torch.dtype, device: torch.device, label: str
) -> None:
    for trial in trials(name, dtype, str(device), rows=ROWS, columns=COLUMNS, features=kernel.features):
        where = blame.place_of(kernel.function)
        try:
            with lenient():
                different = first_difference(
                    kernel.function, OPERATIONS[name].reference, trial, trial.given, backward=wanted.backward
                )
        except Exception as error:
            if is_exhaustion(error):
                raise
            problem, frame = blame.describe(error), blame.blamed(error)
            if frame is not None and frame.plugin != blame.owner_of(_check):  # autograd raises only with our message
                where = frame.where
        else:
            if different is None:
                continue
            problem = f"{different.which} is {different.got}, expected {different.expected}"
        raise PlanError(
            f"kernels.{name}={kernel.provider}: it is wrong on {label} in {str(dtype).removeprefix('torch.')} "
            f"({trial.name}): {problem}{f' [{where}]' if where else ''}",
            action=f"set kernels.{name}: torch",
        )
