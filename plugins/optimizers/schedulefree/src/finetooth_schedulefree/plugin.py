"""Optimizers that average weights instead of lowering the learning rate."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, hookimpl

_BUILDERS = "finetooth_schedulefree.optimizers"


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """The entries. Both need no schedule: evaluations and artifacts use averages of the weights."""
    yield Optimizer(
        name="schedule_free_adamw",
        build=f"{_BUILDERS}:build_adamw",
        summary="AdamW that averages weights instead of lowering the learning rate",
        state_bytes=8.0,
        update_bytes=4.0,
        tensor_bytes=8.0,
        elsewhere={"schedule_free_radam": {}, "adamw_schedule_free": {}},
    )
    yield Optimizer(
        name="schedule_free_sgd",
        build=f"{_BUILDERS}:build_sgd",
        summary="SGD that averages weights instead of lowering the learning rate",
        state_bytes=4.0,
        update_bytes=4.0,
        elsewhere={"sgd_schedule_free": {}},
    )
