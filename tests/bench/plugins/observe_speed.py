"""An observing plugin of the bench: remembers the slowest step."""

from __future__ import annotations

from finetooth_hooks import Run, StepReport, hookimpl


@hookimpl
def ft_step(run: Run, report: StepReport) -> None:
    run.state["slowest"] = max(run.state.get("slowest", 0.0), report.seconds)
