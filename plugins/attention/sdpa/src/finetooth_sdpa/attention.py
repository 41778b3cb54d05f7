"""Attention as transformers computes it with torch's `scaled_dot_product_attention`."""

from __future__ import annotations

from finetooth_hooks.protocols import Attention


def build() -> Attention:
    """Fused attention of torch."""
    from finetooth_torchshared.attention import by_name  # with torch, which who asks for the options does not need

    return by_name("sdpa")
