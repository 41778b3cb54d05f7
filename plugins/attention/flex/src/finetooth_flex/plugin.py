"""Torch's flex attention."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Attention, AttentionServes, hookimpl

ARCHITECTURES = ("sm_7?", "sm_8?", "sm_9?", "sm_1??", "gfx9*", "gfx103*", "gfx11*", "gfx12*")
"""For which torch compiles it with Triton: NVIDIA's from compute capability 7.0, and AMD's but for RDNA 1, on which
Triton's kernels write nothing."""


@hookimpl
def ft_attention() -> Iterator[Attention]:
    yield Attention(
        name="flex",
        build="finetooth_flex.attention:build",
        summary="a kernel that torch compiles for the model's mask; skips the masked blocks",
        aliases=("flex_attention",),
        transformers="flex_attention",
        serves=AttentionServes(
            devices=frozenset({"cuda", "xpu"}), architectures=ARCHITECTURES, segments="blocks", window=True,
            softcap=True, sinks=True, chunks=True, head_multiple=16,
        ),
    )  # fmt: skip
