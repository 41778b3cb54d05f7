"""The numbers of a step and of an evaluation under the names that trackers give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks.reports import Evaluation, Sample, StepReport

FIELDS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "epoch",
    "tokens_per_second",
    "seconds",
    "flops_per_second",
    "mfu",
    "padding",
)
"""Fields of a step's report that are shown under their own names."""

COLUMNS = ["id", "prompt", "answer", "reward"]
"""Columns of the table of a step's sampled answers."""
TABLE = "train/samples"
"""The table's name among a tracker's metrics."""


def sample_rows(samples: Sequence[Sample]) -> list[list[Any]]:
    """A row of `COLUMNS` for each answer."""
    return [[sample.id, sample.prompt, sample.answer, float(sample.score)] for sample in samples]


def step_values(report: StepReport) -> dict[str, float]:
    """`train/NAME`: the step's figures and every metric of its method; memory in bytes."""
    values = {name: float(getattr(report, name)) for name in FIELDS}
    values |= {"memory_bytes": float(report.memory), "memory_now_bytes": float(report.memory_now)}
    values |= {"skipped": float(report.skipped), **{name: float(value) for name, value in report.metrics.items()}}
    return {f"train/{name}": value for name, value in values.items()}


def evaluation_values(evaluation: Evaluation) -> dict[str, float]:
    """`eval/NAME` of an evaluation's metrics, and `baseline/NAME` of the scores of trivial answers, blanks as `_`."""
    values = {f"eval/{name}": float(value) for name, value in evaluation.metrics.items()}
    return values | {f"baseline/{name.replace(' ', '_')}": float(v) for name, v in evaluation.baselines.items()}
