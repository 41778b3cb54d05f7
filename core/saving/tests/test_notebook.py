"""Curves while a run trains, and its numbers as a table."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks.reports import Evaluation, Outcome, StepReport
from finetooth_saving.runs.notebook import LiveCurves, Result, live_curves


def report(step: int, loss: float) -> StepReport:
    return StepReport(step, epoch=step / 4, loss=loss, tokens=10, targets=5, rows=2, learning_rate=1e-3, grad_norm=1.0)


def outcome() -> Outcome:
    return Outcome(
        "done", 0, "", 2, {"loss": 1.0}, {}, None, "hash", 1.0,
        history=(report(1, 2.0), report(2, 1.0)),
        evaluations=(Evaluation("loss", 0, {"loss": 3.0}), Evaluation("loss", 2, {"loss": 2.5})),
    )  # fmt: skip


def test_the_table_has_a_row_for_every_step() -> None:
    result = Result.of(outcome())
    assert (result.status, result.metrics["loss"]) == ("done", 1.0)
    frame = result.frame
    assert list(frame.index) == [0, 1, 2]
    assert frame["loss"].dropna().to_dict() == {1: 2.0, 2: 1.0}
    assert frame["eval/loss"].dropna().to_dict() == {0: 3.0, 2: 2.5}
    nothing = Result.of(Outcome("failed", 1, "", 0, {}, {}, None, "hash", 1.0)).frame
    assert len(nothing) == 0 and nothing.index.name == "step"


@pytest.mark.parametrize("pause", [0.0, 1e9])
def test_curves_are_drawn_as_they_come_and_at_the_end(pause: float) -> None:
    drawn: list[str] = []
    curves, run = LiveCurves(drawn.append, pause=pause), SimpleNamespace(step=0, total_steps=2)
    told: Any = run
    curves.start(told)
    for one in outcome().history:
        run.step = one.step
        curves.step(told, one)
    curves.evaluated(told, Evaluation("loss", 2, {"loss": 2.5}))
    curves.end(told, outcome())
    assert len(drawn) == (3 if pause == 0 else 2)  # the first step is drawn at once, and the end always
    assert "step 1 of 2" in drawn[0] and "done after 2 steps" in drawn[-1]
    assert len(re.findall("<(?:polyline|path|circle)", drawn[-1])) >= 1
    curves.resume(told, outcome().history)
    curves.end(told, outcome())
    assert len(drawn) == (4 if pause == 0 else 3)


def test_nothing_is_drawn_where_no_notebook_is() -> None:
    assert live_curves() is None
