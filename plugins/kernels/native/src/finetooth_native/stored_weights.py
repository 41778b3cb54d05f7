"""Weights that are stored in fewer bits, as the numbers of one matrix: made when a product wants them, forgotten after.

Backward multiplies with a weight too. Kept for it, the numbers of all layers would take what storing them saves, so
they are made again there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from finetooth_kernels.memory import new_empty
from finetooth_torchshared.plain_modules import is_hooked
from finetooth_torchshared.quantised import DequantisingLinear
from torch import Tensor

__all__ = ["is_stored", "joined_weight", "recomputed"]


def is_stored(module: Any) -> TypeGuard[DequantisingLinear]:
    """Whether the module is nothing but a stored weight and a bias."""
    return isinstance(module, DequantisingLinear) and not is_hooked(module)


def joined_weight(layers: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """(O, D), the layers' weights below each other, without a graph; the same numbers every time.

    Args:
        layers: stored or plain.
        dtype: of the result.
    """
    outputs = sum(layer.out_features for layer in layers)
    weight = new_empty(_place(layers[0]), (outputs, layers[0].in_features), dtype)
    parts: Any = weight.split([layer.out_features for layer in layers])  # type: ignore[no-untyped-call]
    for layer, rows in zip(layers, parts, strict=True):
        if isinstance(layer, DequantisingLinear):
            layer.write(rows)
        else:
            rows.copy_(layer.weight.detach())
    return weight


def _place(layer: Any) -> Tensor:
    """A tensor that lies where the layer's weight does."""
    weight: Tensor = layer.qweight if isinstance(layer, DequantisingLinear) else layer.weight.detach()
    return weight


def recomputed(made: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[None]:
    """Within it an operation that keeps `made` for backward, or a view of it, keeps `make` instead, which makes it
    once more: for the first of several, and the last of them forgets it. Everything else is kept as always.

    Args:
        made: has a storage of its own.
    """
    address, keepers, waiting = made.untyped_storage().data_ptr(), 0, 0
    again: Tensor | None = None

    def put(tensor: Tensor) -> Any:
        nonlocal keepers
        if tensor.untyped_storage().data_ptr() != address:
            return tensor
        keepers += 1
        return tensor.shape, tensor.stride(), tensor.storage_offset()

    def take(put_away: Any) -> Tensor:
        nonlocal again, waiting
        if isinstance(put_away, Tensor):
            return put_away
        if again is None:
            again, waiting = make(), keepers
        made, waiting = again, waiting - 1
        again = again if waiting else None
        return made.as_strided(*put_away)

    return torch.autograd.graph.saved_tensors_hooks(put, take)
