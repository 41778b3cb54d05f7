"""Attention as transformers computes it with torch's `flex_attention`."""

from __future__ import annotations

from finetooth_hooks.protocols import Attention


def build() -> Attention:
    """Compiled when it is first called."""
    from finetooth_torchshared.attention import by_name  # with torch, which who asks for the options does not need

    return by_name("flex_attention")
