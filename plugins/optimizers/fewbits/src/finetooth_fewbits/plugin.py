"""Optimizers whose states have few bits."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_BUILDERS = "finetooth_fewbits.optimizers"
_PAGED = frozenset({"cuda"})


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """`state_bytes` is that of small tensors, whose states stay in fp32; for a model that trains whole the plan counts
    by its sizes."""
    yield Optimizer(
        name="adamw_8bit",
        build=f"{_BUILDERS}:build_adamw_8bit",
        summary="AdamW with moments in 8 bits",
        state_bytes=8.0,
        tensor_bytes=20.0,
        elsewhere={"adamw_bnb_8bit": {}, "adam8bit": {}, "adamw8bit": {}},
    )
    yield Optimizer(
        name="lion_8bit",
        build=f"{_BUILDERS}:build_lion_8bit",
        summary="Lion with a momentum in 8 bits",
        state_bytes=4.0,
        tensor_bytes=20.0,
        elsewhere={"lion8bit": {}},
    )
    yield Optimizer(
        name="paged_adamw",
        build=f"{_BUILDERS}:build_paged_adamw",
        summary="AdamW whose moments leave a full GPU",
        state_bytes=8.0,
        devices=_PAGED,
        elsewhere={"paged_adamw_32bit": {}},
    )
    yield Optimizer(
        name="paged_adamw_8bit",
        build=f"{_BUILDERS}:build_paged_adamw_8bit",
        summary="AdamW with moments in 8 bits that leave a full GPU",
        state_bytes=8.0,
        devices=_PAGED,
    )
