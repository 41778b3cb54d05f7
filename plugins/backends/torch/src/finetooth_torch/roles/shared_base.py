"""One copy of a frozen base for all engines of a process."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from weakref import WeakValueDictionary

from finetooth_hooks.protocols import EngineRequest
from finetooth_steps.shared_base import Key, base_key
from torch import nn

_BASES: WeakValueDictionary[Key, nn.Module] = WeakValueDictionary()
_LOADING = threading.Lock()


def shared_base(request: EngineRequest, precision: str, load: Callable[[], nn.Module]) -> nn.Module:
    """A model with its own modules, for an adapter, over shared weights, which are loaded at the first use. The last
    such model frees the weights.

    Args:
        precision: of the loaded base.
        load: loads it.
    """
    key = base_key(request, precision)
    with _LOADING:
        base = _BASES.get(key)
        if base is None:
            base = load()
            for parameter in base.parameters():
                parameter.requires_grad_(False)
            _BASES[key] = base
    tensors = [*base.parameters(), *base.buffers()]
    own = copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})
    own.__dict__["_base_of_all"] = base  # not a submodule; it keeps the weights' owner alive
    return own
