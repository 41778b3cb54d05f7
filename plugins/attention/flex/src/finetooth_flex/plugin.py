"""Torch's flex attention."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Attention, AttentionServes, hookimpl

ARCHITECTURES = ("sm_7?", "sm_8?", "sm_9?", "sm_1??", "gfx9*", "gfx103*", "gfx11*", "gfx12*")
"""For which torch compiles it with Triton: NVIDIA's from compute capability 7.0, and AMD's but for RDNA 1, on which
Triton's kernels write nothing."""

LARGEST = 256
"""For more elements of a head torch's forward kernel wants more shared memory than any GPU has for a block."""

SMALL = ("sm_7?", "sm_86", "sm_89", "sm_12?", "gfx90?", "gfx94?", "gfx1*")
"""Architectures that have at most 100 KiB of it. The backward kernel wants 112 KiB or more for more than 128 elements,
and does not launch (pytorch/pytorch, issues 133254 and 198224). AMD's have 64 KiB; nobody has reported on them."""


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
            softcap=True, sinks=True, chunks=True, head_multiple=16, largest_head=LARGEST,
            heads_on=dict.fromkeys(SMALL, 128),
        ),
    )  # fmt: skip
