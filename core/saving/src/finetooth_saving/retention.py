"""Which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["min", "max"]
LESS = (
    "loss", "perplexity", "error", "mse", "mae", "bits_per_byte", "brier_score", "/wer", "/cer", "/ter", "unfinished",
)  # fmt: skip
"""How metrics end of which less is better: errors, what lm-eval measures of a text and of a transcript, the share of
answers that were cut off."""
MEASURED = "eval/"
"""What the names of evaluators' metrics begin with."""


@dataclass(frozen=True)
class Best:
    """The best so many by one metric."""

    n: int
    metric: str
    mode: Mode


def mode_of(metric: str) -> Mode:
    """Which way a metric is better, by its name: less of a loss, a perplexity or an error, more of anything else."""
    return "min" if metric.endswith(LESS) else "max"


def is_better(value: float, than: float, mode: Mode) -> bool:
    """Whether a value of a metric is better than another one."""
    return value < than if mode == "min" else value > than


def ranked(by_step: Mapping[int, Mapping[str, float]], metric: str, mode: Mode) -> list[int]:
    """Steps that have the metric, best first; of equals the earlier.

    Args:
        by_step: metrics of each checkpoint by its step.
    """
    sign = 1.0 if mode == "min" else -1.0
    values = {
        step: metrics[metric] for step, metrics in by_step.items() if math.isfinite(metrics.get(metric, math.nan))
    }
    return sorted(values, key=lambda step: (sign * values[step], step))


def superfluous(by_step: Mapping[int, Mapping[str, float]], last: int, best: Best | None) -> list[int]:
    """Steps whose checkpoints may go, oldest first. The newest always stays.

    Args:
        by_step: metrics of each checkpoint by its step.
        last: so many of the newest stay; 0 keeps all.
        best: those stay too.
    """
    if not last:
        return []
    stay = set(sorted(by_step)[-last:])
    if best is not None:
        stay |= set(ranked(by_step, best.metric, best.mode)[: best.n])
    return sorted(set(by_step) - stay)
