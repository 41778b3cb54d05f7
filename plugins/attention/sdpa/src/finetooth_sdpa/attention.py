"""Attention as transformers computes it with torch's `scaled_dot_product_attention`."""

from __future__ import annotations

from finetooth_hooks import Context, NoOptions
from finetooth_hooks.protocols import Attention


def build(options: NoOptions, context: Context) -> Attention:
    """Fused attention of torch."""
    from finetooth_torchshared.attention import by_name  # with torch, which who asks for the options does not need

    del options, context
    return by_name("sdpa")
