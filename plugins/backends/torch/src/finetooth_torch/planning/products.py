"""Whether hardware can round products of fp32 to TF32."""

from __future__ import annotations

import re

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import HardwareFacts

LEAST = 80
"""Compute capability from which NVIDIA GPUs have TF32 (Ampere), times ten."""


def check_tf32(wanted: bool, hardware: HardwareFacts) -> None:
    """Check that the device has TF32 if the recipe asks for it.

    Raises:
        PlanError: TF32 is asked for, and the device has none.
    """
    nvidia = re.fullmatch(r"sm_(\d+)", hardware.architecture)
    if wanted and (nvidia is None or int(nvidia[1]) < LEAST):
        raise PlanError(
            f"backend.tf32=true: {hardware.label} has no TF32, which NVIDIA GPUs have from compute capability 8.0",
            action=f"leave it out: {hardware.precisions[0]} is the fastest precision there",
        )
