"""Weights that are stored in fewer bits, as the numbers of one matrix: made when a product wants them, forgotten after.

Backward multiplies with a weight too. Kept for it, the numbers of all layers would take what storing them saves, so
they are made anew there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from finetooth_toolbox.torch.plain_modules import is_hooked
from finetooth_toolbox.torch.quantised import DequantisingLinear
from torch import Tensor

__all__ = ["is_stored", "made", "made_again"]


def is_stored(module: Any) -> TypeGuard[DequantisingLinear]:
    """Whether the module is nothing but a stored weight and a bias."""
    return isinstance(module, DequantisingLinear) and not is_hooked(module)


def made(layers: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """(O, D), the layers' weights below each other, without a graph; the same numbers every time.

    Args:
        layers: stored or plain.
        dtype: of the result.
    """
    weights = [
        layer.dequantised(dtype) if isinstance(layer, DequantisingLinear) else layer.weight.detach().to(dtype)
        for layer in layers
    ]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def made_again(weight: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[None]:
    """Within it an operation that keeps `weight` for backward, or a view of it, keeps `make` instead, which makes it
    once more. Everything else is kept as always.

    Args:
        weight: has a storage of its own.
    """
    kept = weight.untyped_storage().data_ptr()

    def put(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() != kept:
            return tensor
        return tensor.shape, tensor.stride(), tensor.storage_offset()

    def take(put_away: Any) -> Tensor:
        return put_away if isinstance(put_away, Tensor) else make().as_strided(*put_away)

    return torch.autograd.graph.saved_tensors_hooks(put, take)
