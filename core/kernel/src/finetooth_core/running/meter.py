"""Adds time, rates and memory to a step's report."""

from __future__ import annotations

from dataclasses import replace

from finetooth_hooks.engine import Engine, Usage
from finetooth_hooks.reports import StepReport


class Meter:
    """Adds to a step's report what only the loop knows: time, rates, memory.

    Args:
        engine: asked after every step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._metered = "usage" in engine.capabilities
        self._peak_flops: float | None = None

    def measured(self, report: StepReport, seconds: float) -> StepReport:
        """The report of a step that took so many seconds."""
        seconds = max(seconds, 1e-9)
        usage = self._engine.usage() if self._metered else Usage(memory=0, peak_memory=0)
        most = self._most(report)
        rate = report.flops / seconds
        if rate > most:  # the peak was measured too low, on a busy machine: utilisation is not known
            most = self._peak_flops = 0.0
        return replace(
            report,
            seconds=seconds,
            tokens_per_second=report.tokens / seconds,
            memory=usage.peak_memory,
            memory_now=usage.memory,
            flops_per_second=rate,
            mfu=rate / most if most else 0.0,
            metrics={**report.metrics, **usage.metrics},
        )

    def _most(self, report: StepReport) -> float:
        """The device's peak speed, read once and only when needed, since it may have to be measured."""
        if self._peak_flops is None and report.flops and self._metered:
            self._peak_flops = self._engine.peak_flops()
        return self._peak_flops or 0.0
