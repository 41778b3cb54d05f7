"""Optimizers that never hold all gradients at once."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_BUILDERS = "finetooth_lomo.optimizers"


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """LOMO and AdaLomo update inside backward, so a step is one micro-batch; BAdam trains layers in turn."""
    yield Optimizer(
        name="lomo",
        build=f"{_BUILDERS}:build_lomo",
        summary="SGD during the backward pass: stores no gradients, no state",
        accumulation=False,
        state_bytes=0.0,
        elsewhere={"lomo_optim": {}},
    )
    yield Optimizer(
        name="adalomo",
        build=f"{_BUILDERS}:build_adalomo",
        summary="updates during the backward pass, scaled by second moments of rows and columns",
        accumulation=False,
        state_bytes=0.5,
    )
    yield Optimizer(
        name="badam",
        build=f"{_BUILDERS}:build_badam",
        summary="Adam that trains one layer at a time",
        state_bytes=8.0,
        tensor_bytes=4.0,
        elsewhere={"block_adam": {}},
    )
