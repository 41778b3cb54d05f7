"""Attention as transformers computes it with torch's `flex_attention`."""

from __future__ import annotations

from finetooth_hooks import Context, NoOptions
from finetooth_hooks.protocols import Attention
from finetooth_toolbox.torch.attention import by_name


def build(options: NoOptions, context: Context) -> Attention:
    """Compiled when it is first called."""
    del options, context
    return by_name("flex_attention")
