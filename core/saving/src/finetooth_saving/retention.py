"""Decides which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["min", "max"]
LESS = (
    "loss", "perplexity", "error", "mse", "mae", "bits_per_byte", "brier_score", "/wer", "/cer", "/ter", "unfinished",
)  # fmt: skip
"""Name endings of metrics of which less is better: errors, lm-eval's metrics of texts and transcripts, the share of
truncated answers."""
MEASURED = "eval/"
"""Name prefix of evaluators' metrics."""


@dataclass(frozen=True)
class Best:
    """A number of best checkpoints by one metric."""

    n: int
    metric: str
    mode: Mode


def mode_of(metric: str) -> Mode:
    """The better direction of a metric, by its name: lower for a loss, a perplexity or an error, higher for others."""
    return "min" if metric.endswith(LESS) else "max"


def is_better(value: float, than: float, mode: Mode) -> bool:
    """Whether a value of a metric is better than another one."""
    return value < than if mode == "min" else value > than


def ranked(by_step: Mapping[int, Mapping[str, float]], metric: str, mode: Mode) -> list[int]:
    """Steps that have the metric, best first; of equal ones, the earlier first.

    Args:
        by_step: metrics of each checkpoint by its step.
    """
    sign = 1.0 if mode == "min" else -1.0
    values = {
        step: metrics[metric] for step, metrics in by_step.items() if math.isfinite(metrics.get(metric, math.nan))
    }
    return sorted(values, key=lambda step: (sign * values[step], step))


def superfluous(by_step: Mapping[int, Mapping[str, float]], last: int, best: Best | None) -> list[int]:
    """Steps of checkpoints to remove, oldest first. The newest always stays.

    Args:
        by_step: metrics of each checkpoint by its step.
        last: number of newest checkpoints that stay; 0 keeps all.
        best: the best ones by a metric stay too.
    """
    if not last:
        return []
    stay = set(sorted(by_step)[-last:])
    if best is not None:
        stay |= set(ranked(by_step, best.metric, best.mode)[: best.n])
    return sorted(set(by_step) - stay)
