"""Gated norms of linear attention, computed by the operation `gated_norm` if a model's module has the same formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from finetooth_kernels import references
from torch import Tensor, nn

__all__ = ["compute_gated_norms"]

NAMES = ("RMSNormGated", "GatedRMSNorm")
"""Suffixes of class names in transformers. Some classes gate before they normalise, or normalise in groups; a trial
decides."""
CLOSE = 1e-4


def compute_gated_norms(model: nn.Module, compute: Callable[..., Tensor]) -> int:
    """Make a model's gated norms use an operation.

    Args:
        compute: `gated_norm`.

    Returns:
        The number of changed modules.
    """
    known: dict[type[nn.Module], bool] = {}
    found = 0
    for module in model.modules():
        kind = type(module)
        if not kind.__name__.endswith(NAMES):
            continue
        if kind not in known:
            known[kind] = _has_formula(module)
        if known[kind]:
            own: Any = module
            own.forward = partial(_forward, module, compute)
            found += 1
    return found


def _forward(module: Any, compute: Callable[..., Tensor], hidden_states: Tensor, gate: Tensor) -> Tensor:
    rows = compute(hidden_states.flatten(0, -2), gate.flatten(0, -2), module.weight, module.variance_epsilon)
    return rows.view(hidden_states.shape)


@torch.no_grad()
def _has_formula(module: Any) -> bool:
    """Whether the module computes the operation's definition, tried on a few numbers."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float) or weight.is_meta:
        return False
    drawn = torch.randn(2, 5, weight.shape[0], generator=torch.Generator().manual_seed(0))
    x_nd, gate_nd = drawn.to(device=weight.device, dtype=weight.dtype)
    try:
        own = module(x_nd, gate_nd)
    except (RuntimeError, TypeError, ValueError):
        return False
    exact = references.gated_norm(x_nd.double(), gate_nd.double(), weight.double(), eps)
    close = CLOSE if weight.dtype == torch.float32 else 2e-2
    return (
        isinstance(own, Tensor) and own.shape == exact.shape and bool(torch.allclose(own.double(), exact, close, close))
    )
