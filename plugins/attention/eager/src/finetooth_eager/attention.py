"""Attention as models of transformers write it down."""

from __future__ import annotations

from finetooth_hooks import Context, NoOptions
from finetooth_hooks.protocols import Attention


def build(options: NoOptions, context: Context) -> Attention:
    """A model has its own; built alone, it is Gemma 2's, or with sinks that of gpt-oss."""
    from finetooth_torchshared.attention import by_name  # with torch, which who asks for the options does not need

    del options, context
    return by_name("eager")
