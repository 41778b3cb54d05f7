"""The numbers of a run as a table."""

from __future__ import annotations

from finetooth_hooks.reports import Evaluation, Outcome, StepReport
from finetooth_saving.runs.result import Result


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
