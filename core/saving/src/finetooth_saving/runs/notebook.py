"""A run in a notebook: its curves while it trains, and its numbers as a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from finetooth_hooks.bases import TrackerBase
from finetooth_hooks.errors import UserError, install_command
from finetooth_hooks.reports import Evaluation, Outcome, StepReport
from finetooth_hooks.run import Run

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

PAUSE = 0.5
"""Seconds between two drawings, at least."""

Draw = Callable[[str], None]
"""Shows SVG in place of what was shown before."""


@dataclass(frozen=True)
class Result(Outcome):
    """What `finetooth.run` returns: the outcome, and its numbers as a table."""

    @staticmethod
    def of(outcome: Outcome) -> Result:
        """The same outcome."""
        return Result(**{field.name: getattr(outcome, field.name) for field in fields(Outcome)})

    @property
    def frame(self) -> pandas.DataFrame:
        """Every step with its metrics as a pandas data frame, `rows()` by `step`. pandas is imported when this is asked
        for.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError(
                "a data frame needs pandas", action=f"{install_command('pandas')}, or take rows()"
            ) from error
        rows = self.rows()
        return pandas.DataFrame(rows, columns=None if rows else ["step"]).set_index("step")


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


def live_curves() -> LiveCurves | None:
    """The tracker that draws below the present cell; None where no notebook is."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    if shell is None or not shell.has_trait("kernel"):
        return None
    return LiveCurves(_cell())


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
