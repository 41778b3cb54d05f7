"""Attention of the flash-attn packages on rows of sequences."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from finetooth_hooks import PlanError
from finetooth_hooks.compute.attention import Lengths
from finetooth_hooks.protocols import Attention
from finetooth_toolbox import blame
from finetooth_toolbox.attention_choice import queries_of

MODULES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}
"""Where each package has its `flash_attn_varlen_func`."""


def build_2() -> Attention:
    """Of the package flash-attn."""
    return _of(2)


def build_3() -> Attention:
    """Of the package flash-attn-3."""
    return _of(3)


def build_4() -> Attention:
    """Of the package flash-attn-4."""
    return _of(4)


def _of(version: int) -> Attention:
    """
    Raises:
        PlanError: the package cannot be imported.
    """
    module = MODULES[version]
    try:
        compute: Callable[..., Any] = importlib.import_module(module).flash_attn_varlen_func
    except Exception as error:  # whatever a wheel for another torch raises, or the unfinished 4 in wheels of 2 lacks
        raise PlanError(
            f"backend.attention=flash_attention_{version}: {module} cannot be imported: {blame.describe(error)}",
            action="install its build for this torch, or set it to auto",
        ) from error

    def attend(
        query: Any, key: Any, value: Any, *, scale: float, lengths: Lengths, causal: bool, window: int | None,
        softcap: float | None, sinks: Any | None,
    ) -> Any:  # fmt: skip
        import torch

        del sinks  # declared as not served
        if 0 in (query.shape[0], query.shape[2]):
            return query.new_zeros(*query.shape[:3], value.shape[-1])
        queries, segments = queries_of(lengths, query.shape[2]), [n for row in lengths for n in row]
        begins, begin_keys = (
            torch.tensor([0, *accumulate(of)], dtype=torch.int32, device=query.device) for of in (queries, segments)
        )
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        more: dict[str, Any] = {} if softcap is None else {"softcap": softcap}
        if torch.are_deterministic_algorithms_enabled():
            more["deterministic"] = True  # of the backward pass, which else adds in any order
        sees = (-1, -1) if window is None else (window - 1, 0 if causal else window - 1)
        attended = compute(
            q, k, v, cu_seqlens_q=begins, cu_seqlens_k=begin_keys, max_seqlen_q=max(queries),
            max_seqlen_k=max(segments), softmax_scale=scale, causal=causal, window_size=sees, **more,
        )  # fmt: skip
        out = attended[0] if isinstance(attended, tuple) else attended
        return out.unflatten(0, (query.shape[0], query.shape[2])).transpose(1, 2)

    return attend
