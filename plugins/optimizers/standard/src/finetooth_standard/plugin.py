"""Standard optimizers over torch, and learning-rate schedules for any backend."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Optimizer, Schedule, hookimpl

_OPTIMIZERS = (
    (
        "adamw",
        "Adam with decoupled weight decay",
        8.0,
        0.0,
        0.0,
        ("adam", "adamw_torch", "adamw_torch_fused", "adamw_hf"),
    ),
    ("sgd", "stochastic gradient descent", 4.0, 4.0, 0.0, ()),
    ("adafactor", "Adafactor: second moments by row and column", 0.5, 4.0, 4.0, ()),
    ("lion", "Lion: the sign of a momentum", 4.0, 0.0, 4.0, ()),
)
"""Name, summary, bytes of a number (state, update, largest tensor), names elsewhere."""
_SCHEDULES = {
    "cosine": ("half a cosine down to 0", ("cosine_annealing", "cosine_with_warmup")),
    "constant": ("the full rate throughout", ("constant_with_warmup",)),
    "linear": ("a straight line down to 0", ("linear_with_warmup",)),
    "cosine_with_restarts": ("half cosines, each from the full rate", ()),
    "cosine_with_min": ("half a cosine down to a floor", ("cosine_with_min_lr",)),
    "polynomial": ("a power of what is left", ()),
    "inverse_sqrt": ("1/sqrt(step), needs no end", ()),
    "wsd": ("warm-up, a plateau, then a short decay", ("warmup_stable_decay",)),
    "one_cycle": ("up and down again, once", ()),
}
"""Summary, and names elsewhere."""


@hookimpl
def ft_optimizers() -> Iterable[Optimizer]:
    """Four optimizers; their bytes are those of float32 parameters. AdamW updates in one pass where torch has a kernel
    for that, Lion one tensor after the other."""
    for name, summary, state, update, tensor, elsewhere in _OPTIMIZERS:
        yield Optimizer(
            name=name,
            build=f"finetooth_standard.optimizers:build_{name}",
            summary=summary,
            default=name == "adamw",
            state_bytes=state,
            update_bytes=update,
            tensor_bytes=tensor,
            elsewhere={other: {} for other in elsewhere},
        )


@hookimpl
def ft_schedules() -> Iterable[Schedule]:
    """Those of the table, and one that follows a metric."""
    for name, (summary, elsewhere) in _SCHEDULES.items():
        yield Schedule(
            name=name,
            build=f"finetooth_standard.schedules:build_{name}",
            summary=summary,
            default=name == "cosine",
            needs_total=name not in ("constant", "inverse_sqrt"),
            elsewhere={other: {} for other in elsewhere},
        )
    yield Schedule(
        name="reduce_on_plateau",
        build="finetooth_standard.plateau:build",
        summary="lower the rate when a metric stops improving",
        needs_total=False,
    )
