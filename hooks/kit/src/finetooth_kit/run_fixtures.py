"""Fixtures for tests of trackers: a run that has not begun, and reports to give it.

A conftest names those it wants:

    from finetooth_kit.run_fixtures import evaluation, outcome, report, run
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks.reports import Evaluation, Outcome, Sample, StepReport


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A run folder, at step 0 of 60."""
    plan = SimpleNamespace(picks={"method": "acme:mine"}, recipe={"model": "toy", "train": {"seed": 3}})
    return SimpleNamespace(id="mine", folder=tmp_path, step=0, total_steps=60, plan=plan, state={})


@pytest.fixture
def report() -> Callable[..., StepReport]:
    """Makes the report of a step: `report(3, loss=1.2)`."""

    def make(step: int, loss: float = 1.5, **values: Any) -> StepReport:
        defaults: dict[str, Any] = {
            "epoch": step / 20,
            "tokens": 640,
            "targets": 30,
            "rows": 16,
            "learning_rate": 1e-3,
            "grad_norm": 0.7,
            "seconds": 2.0,
            "tokens_per_second": 320.0,
            "memory": 2**31,
        }
        return StepReport(step=step, loss=loss, **{**defaults, **values})

    return make


@pytest.fixture
def evaluation() -> Evaluation:
    """One evaluation before training."""
    sample = Sample("tasks:1", "What is Søren to Ana?", "brother", "sister", 0.0)
    return Evaluation(
        "exact_match", 0, {"exact_match": 0.25, "unfinished": 0.0}, {"majority answer": 0.125}, (sample,), rows=300
    )


@pytest.fixture
def outcome() -> Outcome:
    """A finished run."""
    return Outcome("done", 0, "", 60, {"loss": 0.5}, {"eval/exact_match": 0.75}, Path("artifact"), "abc", 12.0)


class NotingContext:
    """A builder's context that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str, *, topic: str = "") -> None:
        self.notes.append(text)


__all__ = ["NotingContext", "evaluation", "outcome", "report", "run"]
