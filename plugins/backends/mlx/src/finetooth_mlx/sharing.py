"""Engines of a process, and roles of an engine, share one copy of a model's weights.

MLX's arrays never change, so models with separate modules can hold the same arrays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from typing import Any
from weakref import WeakValueDictionary

import mlx.nn as nn
from finetooth_steps.shared_base import Key

Models = MutableMapping[Key, Any]
OF_THE_PROCESS: Models = WeakValueDictionary()
_LOADING = threading.Lock()


def shared(models: Models, key: Key, load: Callable[[], Any]) -> Any:
    """A model with its own modules over shared weights, which are loaded at the first use. The last such model frees
    the weights.

    Args:
        models: loaded models, by their identity.
    """
    with _LOADING:
        owner = models.get(key)
        if owner is None:
            owner = models[key] = load()
    model = twin(owner, {})
    model.__dict__["_owner"] = owner  # not an attribute of the module: MLX would take it for a part of the model
    return model


def twin(value: Any, made: dict[int, Any]) -> Any:
    """New modules and containers, with the same arrays in them.

    Args:
        made: copies so far, by the identity of their originals.
    """
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, nn.Module):
        kind: Any = type(value)
        module = made[id(value)] = kind.__new__(kind)
        module.__dict__.update({name: twin(of, made) for name, of in value.__dict__.items()})
        for name, of in value.items():
            dict.__setitem__(module, name, twin(of, made))
        return module
    if type(value) is dict:
        return {name: twin(of, made) for name, of in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(twin(of, made) for of in value)
    return value
