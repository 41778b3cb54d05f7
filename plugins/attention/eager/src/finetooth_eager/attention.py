"""Attention as models of transformers write it down."""

from __future__ import annotations

from finetooth_hooks.protocols import Attention


def build() -> Attention:
    """A model has its own; built alone, it is Gemma 2's, or with sinks that of gpt-oss."""
    from finetooth_torchshared.attention import by_name  # with torch, which who asks for the options does not need

    return by_name("eager")
