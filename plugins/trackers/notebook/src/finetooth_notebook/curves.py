"""The losses of a run, drawn below the cell of a notebook while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from finetooth_hooks.bases import TrackerBase
from finetooth_hooks.reports import Evaluation, Outcome, StepReport
from finetooth_hooks.run import Run

PAUSE = 0.5
"""Seconds between two drawings, at least."""

Draw = Callable[[str], None]
"""Shows SVG in place of what was shown before."""


class LiveCurves(TrackerBase):
    """Draws the losses of a run as they come.

    Args:
        draw: shows them.
        pause: seconds between two drawings, at least; the last one is always made.
    """

    capabilities = frozenset({"resume"})

    def __init__(self, draw: Draw, *, pause: float = PAUSE) -> None:
        self._draw, self._pause = draw, pause
        self._drawn = -float("inf")
        self._curves: dict[str, list[tuple[float, float]]] = {}

    def start(self, run: Run) -> None:
        self._curves = {"loss": [], "eval/loss": []}

    def resume(self, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        self.start(run)
        for report in history:
            self._take(report)

    def step(self, run: Run, report: StepReport) -> None:
        self._take(report)
        if time.monotonic() - self._drawn >= self._pause:
            self._show(f"step {run.step} of {run.total_steps}")

    def evaluated(self, run: Run, evaluation: Evaluation) -> None:
        self._take(evaluation)

    def end(self, run: Run, outcome: Outcome) -> None:
        self._show(f"{outcome.status} after {outcome.steps} steps")

    def _take(self, report: StepReport | Evaluation) -> None:
        if isinstance(report, StepReport):
            self._curves["loss"].append((report.step, report.loss))
        elif "loss" in report.metrics:
            self._curves["eval/loss"].append((report.step, report.metrics["loss"]))

    def _show(self, title: str) -> None:
        from finetooth_saving.runs.chart import chart, svg

        drawing = chart(f"loss, {title}", {name: points for name, points in self._curves.items() if points})
        if drawing is not None:
            self._draw(svg(drawing))
        self._drawn = time.monotonic()


def build() -> LiveCurves:
    """The tracker that draws below the present cell; outside a notebook it draws nothing."""
    return LiveCurves(_cell() if "IPython" in sys.modules else lambda content: None)


def _cell() -> Draw:
    from IPython import display

    shown: Any = display  # IPython has no types
    handle: Any = None

    def draw(content: str) -> None:
        nonlocal handle
        if handle is None:
            handle = shown.display(shown.SVG(content), display_id=True)
        else:
            handle.update(shown.SVG(content))

    return draw
