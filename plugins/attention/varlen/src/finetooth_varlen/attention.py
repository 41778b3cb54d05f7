"""Attention with `torch.nn.attention.varlen`, whose kernel takes all sequences of all rows one after the other."""

from __future__ import annotations

import inspect
from itertools import accumulate
from typing import Any

from finetooth_hooks import PlanError
from finetooth_hooks.compute.attention import Lengths
from finetooth_hooks.protocols import Attention
from finetooth_toolbox.attention_choice import queries_of

NEEDED = {"scale", "window_size"}
"""Arguments that torch's function did not have from the start."""


def build() -> Attention:
    """Builds attention over packed sequences with torch's `varlen_attn`.

    Raises:
        PlanError: this torch has none, or one that lacks an argument.
    """
    import torch

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise PlanError(
            f"backend.attention=varlen: torch {torch.__version__} does not have it", action="set it to auto"
        ) from error
    parameters = inspect.signature(varlen_attn).parameters
    if lacking := sorted(NEEDED - parameters.keys()):
        raise PlanError(
            f"backend.attention=varlen: that of torch {torch.__version__} has no {' and '.join(lacking)}",
            action="set it to auto",
        )

    repeats = "enable_gqa" in parameters  # torch 2.11 has no such parameter

    def attend(
        query: Any, key: Any, value: Any, *, scale: float, lengths: Lengths, causal: bool, window: int | None,
        softcap: float | None, sinks: Any | None,
    ) -> Any:  # fmt: skip
        del softcap, sinks  # declared as not served
        if 0 in (query.shape[0], query.shape[2]):
            return query.new_zeros(*query.shape[:3], value.shape[-1])
        queries = queries_of(lengths, query.shape[2])
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and not repeats:
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        more = {"enable_gqa": groups > 1} if repeats else {}
        width = value.shape[-1]
        if width < query.shape[-1]:  # as of DeepSeek: the kernel takes heads of one size
            value = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
        q, k, v = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (query, key, value))
        segments = [n for row in lengths for n in row]
        back = -1 if window is None else window - 1
        ahead = 0 if causal else back
        attended = varlen_attn(
            q, k, v, _ends(queries, query.device), _ends(segments, query.device), max(queries), max(segments),
            scale=scale, window_size=(back, ahead), **more,
        )  # fmt: skip
        assert isinstance(attended, torch.Tensor)
        return attended.view(query.shape[0], query.shape[2], *attended.shape[1:]).transpose(1, 2)[..., :width]

    return attend


def _ends(lengths: list[int], device: Any) -> Any:
    """(sequences + 1,) where each begins, and the end."""
    import torch

    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
