"""Torch's scaled dot product attention."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Attention, AttentionServes, hookimpl

PRECISIONS = frozenset({"fp64", "fp32", "bf16", "fp16"})


@hookimpl
def ft_attention() -> Iterator[Attention]:
    yield Attention(
        name="sdpa",
        build="finetooth_sdpa.attention:build",
        summary="torch's scaled dot product attention, with a dense mask where one is needed",
        rank=100,
        transformers="sdpa",
        serves=AttentionServes(
            devices=frozenset({"cpu", "cuda", "mps", "xpu"}),
            precisions=PRECISIONS,
            segments="mask",
            window=True,
            chunks=True,
        ),
    )
