"""Torch's flex attention."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Attention, AttentionServes, hookimpl


@hookimpl
def ft_attention() -> Iterator[Attention]:
    yield Attention(
        name="flex",
        build="finetooth_flex.attention:build",
        summary="a kernel that torch compiles for the model's mask; skips the masked blocks",
        aliases=("flex_attention",),
        transformers="flex_attention",
        serves=AttentionServes(
            devices=frozenset({"cuda", "xpu"}), segments="blocks", window=True, softcap=True, sinks=True, chunks=True,
            head_multiple=16,
        ),
    )  # fmt: skip
