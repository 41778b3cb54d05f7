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
        summary="turn the inputs of linear modules, block by block, by orthogonal matrices",
        example={"block_size": 4},
    )
    yield _adapter(
        name="boft",
        build="finetooth_peft.orthogonal:build_boft",
        summary="turn the inputs of linear modules by orthogonal matrices, and scale their outputs",
        example={"block_size": 4},
    )
    yield _adapter(
        name="vera",
        build="finetooth_peft.vera:build",
        summary="scale two fixed random matrices that all linear modules share",
        example={"rank": 4},
    )
    yield _adapter(
        name="ia3",
        build="finetooth_peft.ia3:build",
        summary="scale keys, values and inputs of the feed-forward block's last module",
        elsewhere={"(ia)3": {}, "IA3": {}},
    )
