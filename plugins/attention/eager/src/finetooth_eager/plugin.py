"""Attention as the model's own code writes it down."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Attention, AttentionServes, hookimpl

PRECISIONS = frozenset({"fp64", "fp32", "bf16", "fp16"})


@hookimpl
def ft_attention() -> Iterator[Attention]:
    yield Attention(
        name="eager",
        build="finetooth_eager.attention:build",
        summary="matrix products and a softmax, as in the model's own code",
        rank=10,
        transformers="eager",
        serves=AttentionServes(
            devices=frozenset({"cpu", "cuda", "mps", "xpu"}), precisions=PRECISIONS, segments="mask", window=True,
            softcap=True, sinks=True, chunks=True, dropout=True, fused=False,
        ),
    )  # fmt: skip
