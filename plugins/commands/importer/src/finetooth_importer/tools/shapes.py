"""Shapes of schedules: transformers' defaults where ours differ, and its `lr_scheduler_kwargs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetooth_importer.account import Account, number

KEYS = ("lr_scheduler_kwargs", "lr_scheduler_args")
RATE = "rate"
"""Marks a number that is a rate there and a share of the full rate here."""
SHAPES: Mapping[str, Mapping[str, tuple[str, Any, str]]] = {
    "cosine_with_restarts": {"num_cycles": ("cycles", 1, "")},
    "cosine_with_min_lr": {"min_lr_rate": ("min_ratio", None, ""), "min_lr": ("min_ratio", None, RATE)},
    "polynomial": {"power": ("power", 1.0, ""), "lr_end": ("end_ratio", 1e-7, RATE)},
    "inverse_sqrt": {"timescale": ("timescale", None, "")},
    "warmup_stable_decay": {"decay_type": ("decay", "cosine", ""), "min_lr_ratio": ("min_ratio", None, "")},
    "reduce_lr_on_plateau": {
        "factor": ("drop", 0.1, ""), "patience": ("patience", 10, ""), "threshold": ("threshold", None, ""),
        "cooldown": ("cooldown", None, ""), "mode": ("mode", None, ""), "min_lr": ("min_ratio", None, RATE),
    },
}  # fmt: skip
"""Options by transformers' names of schedules: ours, what holds where it is not given (None: the same as here), and
whether it is a rate."""
NOTE = "give the schedule its options: schedule: {name: ..., ...}"


def take(account: Account, schedule: str) -> None:
    """Give a schedule that transformers names its options, and its defaults that differ from ours.

    Args:
        schedule: by transformers' name. The optimizer's rate and the steps of the run are read before.
    """
    shape = SHAPES.get(schedule, {})
    key = next((name for name in KEYS if account.has(name)), KEYS[0])
    given = account.get(key)
    try:
        given = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        given = None
    left = dict(given) if isinstance(given, Mapping) else {}
    for name, (option, default, kind) in shape.items():
        value = number(left.pop(name, default))
        if value is not None and (kind != RATE or (value := _share(account, value)) is not None):
            account.set(f"schedule.{option}", value)
    if schedule == "warmup_stable_decay":
        steps, run = left.pop("num_decay_steps", None), account.recipe.get("train", {}).get("max_steps")
        if steps and run:
            account.set("schedule.decay_ratio", number(steps) / run)
        elif account.has(key):
            left["num_decay_steps"] = steps
    if schedule == "reduce_lr_on_plateau":
        account.set("schedule.metric", "eval/loss")
    if isinstance(given, Mapping) and not left:
        account.covered(key, "schedule")
    else:
        account.refuse(key, f"{NOTE}; not taken of it: {', '.join(left)}" if left else NOTE, unless={})
    for other in KEYS:
        account.refuse(other, NOTE, unless={})


def _share(account: Account, rate: Any) -> float | None:
    """A rate as a share of the full one; None where the recipe leaves that to a default."""
    optimizer = account.recipe.get("optimizer")
    full = number(optimizer.get("learning_rate")) if isinstance(optimizer, dict) else None
    return rate / full if isinstance(full, int | float) and full else None
