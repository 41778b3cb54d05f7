"""Whether hardware can round products of fp32 to TF32."""

from __future__ import annotations

import re
from typing import Literal

from finetooth_hooks import Decision, PlanError
from finetooth_hooks.protocols import HardwareFacts

LEAST = 80
"""Compute capability from which NVIDIA GPUs have TF32 (Ampere), times ten."""


def choose_tf32(wanted: Literal["auto"] | bool, precision: str | None, hardware: HardwareFacts) -> Decision | None:
    """The value of `TorchOptions.tf32`; None if nothing is multiplied in fp32, or the device lacks TF32.

    Raises:
        PlanError: TF32 is asked for, and the device has none.
    """
    nvidia = re.fullmatch(r"sm_(\d+)", hardware.architecture)
    missing = nvidia is None or int(nvidia[1]) < LEAST
    if wanted is True and missing:
        raise PlanError(
            f"backend.tf32=true: {hardware.label} has no TF32, which NVIDIA GPUs have from compute capability 8.0",
            action=f"leave it out: {hardware.precisions[0]} is the fastest precision there",
        )
    if missing or precision != "fp32":
        return None
    if wanted != "auto":
        return Decision("backend.tf32", wanted, "the recipe says so")
    why = "fp32 products keep all 23 bits of the mantissa; true keeps 10 of them and is several times as fast"
    return Decision("backend.tf32", False, why)
