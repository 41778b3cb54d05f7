"""Adapters of peft other than low-rank additions: OFT, BOFT, VeRA, (IA)3."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from finetooth_hooks import Adapter, hookimpl

_adapter = partial(Adapter, can_disable=True, base_frozen=True)


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapters `oft`, `boft`, `vera` and `ia3`; the base stays frozen."""
    yield _adapter(
        name="oft",
        build="finetooth_peft.orthogonal:build_oft",
        summary="rotate the inputs of linear modules with block-diagonal orthogonal matrices",
        example={"block_size": 4},
    )
    yield _adapter(
        name="boft",
        build="finetooth_peft.orthogonal:build_boft",
        summary="rotate the inputs of linear modules with products of sparse orthogonal matrices, scale their outputs",
        example={"block_size": 4},
    )
    yield _adapter(
        name="vera",
        build="finetooth_peft.vera:build",
        summary="train the scales of two fixed random matrices that all linear modules share",
        example={"rank": 4},
    )
    yield _adapter(
        name="ia3",
        build="finetooth_peft.ia3:build",
        summary="train scales for keys, values and the inputs of the feed-forward block's last module",
        elsewhere={"(ia)3": {}, "IA3": {}},
    )
