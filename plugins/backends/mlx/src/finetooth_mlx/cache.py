"""The KV cache for sampling: mlx-lm's, which grows by 256 positions, in full precision or quantised."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from finetooth_hooks import PlanError
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from finetooth_mlx.planning import CACHE_GROUPS, KV_CACHE


def make_cache(model: Any, head_dim: int, bits: int) -> list[Any]:
    """A cache for each layer. Caches of layers with a sliding window are small and stay plain.

    Args:
        bits: per number; 0 is plain.
    """
    made = make_prompt_cache(model)
    if not bits:
        return list(made)
    group = next(size for size in CACHE_GROUPS if head_dim % size == 0)
    return [QuantizedKVCache(group, bits) if type(layer) is KVCache else layer for layer in made]


def check_cache(network: Any, bits: int) -> None:
    """Try the cache with one token: not all classes of mlx-lm read a quantised cache.

    Raises:
        PlanError: the model's class cannot compute with a quantised cache.
    """
    if not bits:
        return
    setting = f"backend.kv_cache={next(name for name, of in KV_CACHE.items() if of == bits)}"
    action = "leave backend.kv_cache out"
    cache = make_cache(network.model, network.facts.head_dim, bits)
    if not any(isinstance(layer, QuantizedKVCache) for layer in cache):
        raise PlanError(f"{setting}: no layer of this model has a cache that grows", action=action)
    try:
        mx.eval(network.body(mx.array([[0]]), cache=cache))
    except (AttributeError, TypeError, ValueError) as error:
        why = f"mlx-lm's class of this model cannot: {str(error).splitlines()[0]}"
        raise PlanError(f"{setting}: {why}", action=action) from error
