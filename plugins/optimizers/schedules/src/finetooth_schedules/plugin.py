"""Learning-rate schedules, for any backend."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Schedule, hookimpl

_SCHEDULES = {
    "cosine": ("half a cosine down to 0", ("cosine_annealing", "cosine_with_warmup")),
    "constant": ("the full learning rate throughout", ("constant_with_warmup",)),
    "linear": ("a straight line down to 0", ("linear_with_warmup",)),
    "cosine_with_restarts": ("several half cosines, each starting at the full rate", ()),
    "cosine_with_min": ("half a cosine down to a floor", ("cosine_with_min_lr",)),
    "polynomial": ("a power of the share of steps that is left", ()),
    "inverse_sqrt": ("1/sqrt(step); needs no number of steps", ()),
    "wsd": ("warm-up, a plateau, then a short decay", ("warmup_stable_decay",)),
    "one_cycle": ("up to the full rate and down again, once", ()),
}
"""Summary, and names elsewhere."""


@hookimpl
def ft_schedules() -> Iterable[Schedule]:
    """The schedules of the table, and one that follows a metric."""
    for name, (summary, elsewhere) in _SCHEDULES.items():
        yield Schedule(
            name=name,
            build=f"finetooth_schedules.shapes:build_{name}",
            summary=summary,
            default=name == "cosine",
            needs_total=name not in ("constant", "inverse_sqrt"),
            elsewhere={other: {} for other in elsewhere},
        )
    yield Schedule(
        name="reduce_on_plateau",
        build="finetooth_schedules.plateau:build",
        summary="lower the rate when a metric stops improving",
        needs_total=False,
    )
