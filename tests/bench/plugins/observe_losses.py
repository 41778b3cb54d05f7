"""An observing plugin of the bench: keeps a running mean of the loss, which checkpoints carry."""

from __future__ import annotations

from finetooth_hooks import Run, StepReport, hookimpl


@hookimpl
def ft_step(run: Run, report: StepReport) -> None:
    mean = run.state.get("mean", report.loss)
    run.state["mean"] = 0.9 * mean + 0.1 * report.loss
