"""Flash attention: one kernel for scores, softmax and values (Dao, 2023, arXiv:2307.08691; Shah and others, 2024,
arXiv:2407.08608)."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Attention, AttentionServes, hookimpl

HALF = frozenset({"bf16", "fp16"})


@hookimpl
def ft_attention() -> Iterator[Attention]:
    for version, package, architectures, rank, largest, sinks in (
        (2, "flash-attn", ("sm_8*", "sm_9*", "sm_1??", "gfx90a", "gfx942", "gfx950"), 50, 256, False),
        (3, "flash-attn-3", ("sm_90",), 54, 256, False),
        (4, "flash-attn-4", ("sm_9*", "sm_10?", "sm_11?"), 52, 128, False),
    ):
        name = f"flash_attention_{version}"
        yield Attention(
            name=name,
            build=f"finetooth_flash.attention:build_{version}",
            summary=f"flash attention {version}; computes nothing between packed sequences",
            rank=rank,
            aliases=("flash",),
            transformers=name,
            serves=AttentionServes(
                devices=frozenset({"cuda"}), architectures=architectures, precisions=HALF, largest_head=largest,
                head_multiple=8, segments="lengths", window=True, softcap=True, sinks=sinks,
                packages=(package,),
            ),
        )  # fmt: skip
