"""Optimizers with other ways than AdamW's to suit a rate to each weight."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_BUILDERS = "finetooth_adaptive.optimizers"


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """Five; their bytes are those of float32 parameters."""
    yield Optimizer(
        name="ademamix",
        build=f"{_BUILDERS}:build_ademamix",
        summary="AdamW with a second, slow momentum",
        state_bytes=12.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
    )
    yield Optimizer(
        name="adopt",
        build=f"{_BUILDERS}:build_adopt",
        summary="Adam that converges for any beta2",
        state_bytes=8.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
        elsewhere={"adopt_adamw": {}},
    )
    yield Optimizer(
        name="came",
        build=f"{_BUILDERS}:build_came",
        summary="Adafactor with a momentum and its confidence",
        state_bytes=5.0,
        update_bytes=4.0,
        tensor_bytes=20.0,
        elsewhere={"came_pytorch": {}},
    )
    yield Optimizer(
        name="prodigy",
        build=f"{_BUILDERS}:build_prodigy",
        summary="AdamW that finds its rate by itself",
        state_bytes=16.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
    )
    yield Optimizer(
        name="sophia",
        build=f"{_BUILDERS}:build_sophia",
        summary="momentum over curvature, cut off at 1",
        state_bytes=8.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
        elsewhere={"sophia_g": {}, "sophiag": {}},
    )
