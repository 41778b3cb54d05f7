"""Torch's own attention over sequences of any length."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Attention, AttentionServes, hookimpl


@hookimpl
def ft_attention() -> Iterator[Attention]:
    yield Attention(
        name="varlen",
        build="finetooth_varlen.attention:build",
        summary="torch's own flash attention for packed sequences",
        rank=40,  # after the packages of flash attention
        serves=AttentionServes(
            devices=frozenset({"cuda"}), architectures=("sm_8*", "sm_9*", "sm_1??"),
            precisions=frozenset({"bf16", "fp16"}), largest_head=256, head_multiple=8, segments="lengths", window=True,
            packages=("torch>=2.11",),
        ),
    )  # fmt: skip
