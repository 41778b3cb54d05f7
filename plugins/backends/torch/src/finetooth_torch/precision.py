"""The precisions by name."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
"""`fp64` is for tests; a recipe cannot set it."""


NARROW = {"mps"}
"""Kinds of devices without float64."""


def has_float64(device: torch.device) -> bool:
    """Whether the device can hold float64."""
    return device.type not in NARROW


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of log-probabilities, losses and master weights: float32, or float64 with float64 weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32
