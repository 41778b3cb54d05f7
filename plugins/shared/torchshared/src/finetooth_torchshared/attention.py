"""Attention with torch: which positions see which, and the implementations of transformers as plain functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from finetooth_hooks.compute.attention import Lengths
from torch import Tensor


def visible(
    lengths: Lengths, positions: int, *, causal: bool, window: int | None, device: torch.device | str = "cpu"
) -> Tensor:
    """(rows, 1, positions, keys): which keys a query sees; see `finetooth_hooks.compute.attention.Attention`.

    Args:
        positions: how many queries there are, those of the last keys.
    """
    keys = sum(lengths[0])
    owner = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths], device=device)
    key = torch.arange(keys, device=device)
    query = key[keys - positions :].unsqueeze(-1)
    seen = owner[:, keys - positions :, None] == owner[:, None, :]
    if causal:
        seen = seen & (key <= query)
    if window is not None:
        seen = seen & (key > query - window)
    return seen.unsqueeze(1)


def by_name(name: str) -> Callable[..., Tensor]:
    """An implementation of transformers, `sdpa`, as `finetooth_hooks.compute.attention.Attention` describes it.
    It gets the masks that models give it."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, *, scale: float, lengths: Lengths, causal: bool, window: int | None,
        softcap: float | None, sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        positions, keys = query.shape[2], key.shape[2]
        if 0 in (query.shape[0], positions):
            return query.new_zeros(*query.shape[:3], value.shape[-1])
        plain = causal and window is None and positions == keys and all(len(row) == 1 for row in lengths)
        seen = visible(lengths, positions, causal=causal, window=window, device=query.device)
        mask = ALL_MASK_ATTENTION_FUNCTIONS[name](
            batch_size=query.shape[0], q_length=positions, kv_length=keys, device=query.device, dtype=query.dtype,
            mask_function=lambda row, head, q, k: seen[row, 0, q, k], allow_is_causal_skip=plain,
        )  # fmt: skip
        module = SimpleNamespace(
            num_key_value_groups=query.shape[1] // key.shape[1], is_causal=causal, training=False, sinks=sinks,
            config=SimpleNamespace(_attn_implementation=name),
        )  # fmt: skip
        extra: dict[str, Any] = {} if softcap is None else {"softcap": softcap}
        if sinks is not None:
            extra["s_aux"] = sinks
        compute = implementation(name, sinks=sinks is not None)
        attended: Tensor = compute(module, query, key, value, mask, scaling=scale, dropout=0.0, **extra)[0]
        return attended.transpose(1, 2)

    return attend


def implementation(name: str, module: Any = None, *, sinks: bool = False) -> Callable[..., Any]:
    """What transformers registers under a name. `eager` is each model's own; without a model, one that caps scores and,
    if asked for, one that has sinks.

    Args:
        module: a layer's attention, whose model is taken.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name != "eager":
        registered: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]
        return registered
    home = type(module).__module__ if module is not None else ""
    home = home or ("transformers.models.gpt_oss.modeling_gpt_oss" if sinks else GEMMA)
    own: Callable[..., Any] = importlib.import_module(home).eager_attention_forward
    return own


GEMMA = "transformers.models.gemma2.modeling_gemma2"
