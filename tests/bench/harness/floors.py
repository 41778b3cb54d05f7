"""How fast a workload could be at most: the FLOPs that finetooth executes, at the machine's whole rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness import figures
from harness.flops import Shape
from harness.goals import DEFAULTS, MINE
from harness.results import Results

PRECISION = "bf16"


@dataclass(frozen=True)
class Floor:
    """One workload.

    Attributes:
        flops: executed for a token.
        rate: of the machine, FLOP/s.
        limit: tokens/s if nothing but the executed FLOPs took time, all at `rate`.
        reached: tokens/s, median.
        peer: tokens/s of the contender that the goal is measured against; None if it did not run.
        goal: tokens/s that the goal asks for; None with the peer.
    """

    flops: float
    rate: float
    limit: float
    reached: float
    peer: float | None
    goal: float | None


GOALS = {
    "lora": (DEFAULTS, 5.0, "tokens_per_second"),
    "full": (DEFAULTS, 3.0, "tokens_per_second"),
    "pretrain": (DEFAULTS, 3.0, "tokens_per_second"),
    "scoring": ("transformers bf16", 3.0, "tokens_per_second"),
    "generation": ("transformers bf16", 2.0, "modes.greedy.tokens_per_second"),
}
"""By workload: against whom, how many times as fast, and the figure."""


def floors(results: Results) -> dict[str, Floor]:
    """Of every workload that has been measured, by name."""
    found = {name: floor(results[name], *GOALS[name]) for name in GOALS if name in results}
    return {name: one for name, one in found.items() if one is not None}


def floor(file: Mapping[str, Any], peer: str, times: float, field: str) -> Floor | None:
    """None if finetooth, its FLOPs or the machine's rate were not measured.

    Args:
        peer: contender of the goal.
        times: how many times as fast the goal asks for.
        field: tokens/s in a run.
    """
    runs = file["runs"]
    run = next(iter(figures.of(runs, MINE).values()), None)
    rate = figures.gemm(runs, PRECISION)
    reached = figures.median(runs, MINE, field)
    if run is None or rate is None or reached is None:
        return None
    done, tokens = figures.executed(run, Shape.of(file["config"])), figures.tokens(run)
    if not done or not tokens:
        return None
    theirs = figures.median(runs, peer, field) if figures.comparable(runs, MINE, peer) else None
    each = done / tokens
    return Floor(each, rate, rate / each, reached, theirs, None if theirs is None else times * theirs)
