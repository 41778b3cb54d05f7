"""Totals of a loss, which engines report so that calls and ranks can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetooth_hooks.compute.losses import Contribution, Metric


@dataclass(frozen=True)
class LossTotals:
    """Totals of a loss over the examples of a call, before division by normalizers. Totals of several calls of a step,
    or of several ranks, can be merged (`finetooth_steps.totals.merge_totals`).

    Attributes:
        loss: full name of the loss.
        contributions: by component; `total` is a float, the sum over the call.
        metrics: by name; `total` and `count` are floats, combined over the call as `reduce` says.
    """

    loss: str
    contributions: Mapping[str, Contribution] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
