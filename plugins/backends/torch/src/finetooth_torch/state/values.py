"""Converts nested states (of optimizers and losses) to JSON and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from finetooth_hooks import UserError
from torch import Tensor


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for nested states; each tensor or array moves to `tensors`, and its key replaces it.

    Raises:
        UserError: a state holds something that is neither number, text, array nor a collection of them.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"items": [[flatten(k, tensors), flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [flatten(item, tensors) for item in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"a state holds {type(value).__name__}, which cannot be saved", action="keep numbers and arrays")


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`.

    Raises:
        ValueError, KeyError, TypeError: `flatten` wrote something else.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise TypeError("a list without its kind")
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {unflatten(k, tensors): unflatten(v, tensors) for k, v in content}
    if kind not in ("list", "tuple") or not isinstance(content, list):
        raise ValueError(f"an unknown kind {kind!r}")
    items = [unflatten(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def keys_of(value: Any) -> set[str]:
    """Keys of the tensors that `flatten` moved, from its JSON."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    return {str(value["tensor"])} if set(value) == {"tensor"} else set().union(*map(keys_of, value.values()))
