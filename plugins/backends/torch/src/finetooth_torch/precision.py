"""The precisions by name."""

from __future__ import annotations

import re

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
"""`fp64` is no setting of a recipe; tests compute in it."""


def kept_in_fp32(model: nn.Module, dtype: torch.dtype) -> frozenset[str]:
    """Names of the parameters that a model computes with in fp32 whatever it is loaded in, as transformers loads it.

    Its authors name them by parts of their paths: routers, decays and so on (`_keep_in_fp32_modules_strict`), and for
    fp16 alone, whose range is smaller than that of the numbers they were made with, those of `_keep_in_fp32_modules`.
    """
    parts: list[str] = []
    if dtype in (torch.bfloat16, torch.float16):
        parts += getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    if dtype == torch.float16:
        parts += getattr(model, "_keep_in_fp32_modules", None) or ()
    if not parts:
        return frozenset()
    kept = re.compile("|".join(part.replace("*", ".*") for part in sorted(parts)))
    return frozenset(name for name, _ in model.named_parameters() if kept.search(name))


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what log-probabilities, losses and master weights are held: float32, or float64 beside float64 weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32
