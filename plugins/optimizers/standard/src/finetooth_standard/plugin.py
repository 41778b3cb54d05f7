"""Standard optimizers over torch, and learning-rate schedules for any backend."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, Schedule, hookimpl

_OPTIMIZERS = "finetooth_standard.optimizers"
_SCHEDULES = "finetooth_standard.schedules"


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """Four optimizers; their bytes are those of float32 parameters. AdamW updates in one pass where torch has a kernel
    for that, Lion one tensor after the other."""
    yield Optimizer(
        name="adamw",
        build=f"{_OPTIMIZERS}:build_adamw",
        summary="Adam with decoupled weight decay",
        default=True,
        state_bytes=8.0,
        elsewhere={"adam": {}, "adamw_torch": {}, "adamw_torch_fused": {}, "adamw_hf": {}},
    )
    yield Optimizer(
        name="sgd",
        build=f"{_OPTIMIZERS}:build_sgd",
        summary="stochastic gradient descent",
        state_bytes=4.0,
        update_bytes=4.0,
    )
    yield Optimizer(
        name="adafactor",
        build=f"{_OPTIMIZERS}:build_adafactor",
        summary="Adafactor: second moments by row and column",
        state_bytes=0.5,
        update_bytes=4.0,
        tensor_bytes=4.0,
    )
    yield Optimizer(
        name="lion",
        build=f"{_OPTIMIZERS}:build_lion",
        summary="Lion: the sign of a momentum",
        state_bytes=4.0,
        tensor_bytes=4.0,
    )


@hookimpl
def ft_schedules() -> Iterable[Schedule]:
    """Ten schedules."""
    yield Schedule(
        name="cosine",
        build=f"{_SCHEDULES}:build_cosine",
        summary="half a cosine down to 0",
        default=True,
        elsewhere={"cosine_annealing": {}, "cosine_with_warmup": {}},
    )
    yield Schedule(
        name="constant",
        build=f"{_SCHEDULES}:build_constant",
        summary="the full rate throughout",
        needs_total=False,
        elsewhere={"constant_with_warmup": {}},
    )
    yield Schedule(
        name="linear",
        build=f"{_SCHEDULES}:build_linear",
        summary="a straight line down to 0",
        elsewhere={"linear_with_warmup": {}},
    )
    yield Schedule(
        name="cosine_with_restarts",
        build=f"{_SCHEDULES}:build_cosine_with_restarts",
        summary="half cosines, each from the full rate",
    )
    yield Schedule(
        name="cosine_with_min",
        build=f"{_SCHEDULES}:build_cosine_with_min",
        summary="half a cosine down to a floor",
        elsewhere={"cosine_with_min_lr": {}},
    )
    yield Schedule(name="polynomial", build=f"{_SCHEDULES}:build_polynomial", summary="a power of what is left")
    yield Schedule(
        name="inverse_sqrt",
        build=f"{_SCHEDULES}:build_inverse_sqrt",
        summary="1/sqrt(step), needs no end",
        needs_total=False,
    )
    yield Schedule(
        name="wsd",
        build=f"{_SCHEDULES}:build_wsd",
        summary="warm-up, a plateau, then a short decay",
        elsewhere={"warmup_stable_decay": {}},
    )
    yield Schedule(name="one_cycle", build=f"{_SCHEDULES}:build_one_cycle", summary="up and down again, once")
    yield Schedule(
        name="reduce_on_plateau",
        build="finetooth_standard.plateau:build",
        summary="lower the rate when a metric stops improving",
        needs_total=False,
    )
