"""Parts of transformers models that stay in fp32 for any precision of the model."""

from __future__ import annotations

import re

import torch
from torch import nn


def kept_in_fp32(model: nn.Module, dtype: torch.dtype) -> frozenset[str]:
    """Names of the parameters and buffers that a model computes with in fp32 though it is loaded in `dtype`, as
    transformers loads it.

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
    pattern = re.compile("|".join(part.replace("*", ".*") for part in sorted(parts)))
    tensors = (*model.named_parameters(), *model.named_buffers())
    return frozenset(name for name, _ in tensors if pattern.search(name))


def cast(model: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """The model on a device and in `dtype`, but for what it keeps in fp32; it is changed in place.

    Args:
        model: in fp32.
    """
    names = kept_in_fp32(model, dtype)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    in_fp32 = {name: tensors[name].detach().to(device) for name in names}
    model.to(device=device, dtype=dtype)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in in_fp32.items():
        tensors[name].data = tensor
    return model
