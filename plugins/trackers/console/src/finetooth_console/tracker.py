"""What a person watching a run sees."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from finetooth_hooks import Context, Evaluation, Method, Options, Outcome, Run, StepReport
from finetooth_hooks.bases import TrackerBase
from finetooth_toolbox.text.measures import size
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from finetooth_console.curve import chart

REDRAW_SECONDS = 0.1
"""The live line is drawn at most this often: fast steps must not wait for the terminal."""
REDRAW_SHARE = 1 / 200
"""Drawing takes at most this share of the time: a slow terminal is drawn to less often."""
PLAIN_LINES = 20
"""About how many lines a run prints without a terminal."""


class ConsoleOptions(Options):
    """Options of `console`."""

    every: int = Field(default=0, ge=0)
    """Without a terminal: steps from one line to the next; 0 prints about 20 lines a run."""
    curve: bool = True
    """Whether to plot the loss at the end, and the method's main metric."""


class ConsoleTracker(TrackerBase):
    """`protocols.Tracker` for people.

    Args:
        options: from the recipe.
        console: where to print.
        clock: seconds, for tests.
        headline: of the method by its full name, names of the metrics that say how it goes (`Method.headline`).
    """

    capabilities = frozenset({"resume"})

    def __init__(
        self,
        options: ConsoleOptions,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        headline: Callable[[str], Sequence[str]] = lambda method: (),
    ) -> None:
        self.options, self.console, self.clock, self._headline_of = options, console, clock, headline
        self._headline: Sequence[str] = ()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._next_draw = float("-inf")
        self._seconds: float | None = None
        self._shown = False
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._telling: dict[str, list[tuple[int, float]]] = {}

    def start(self, run: Run) -> None:
        """Begin the live line, if there is a terminal."""
        self._headline = self._headline_of(run.plan.picks.get("method", ""))
        if not self.console.is_terminal:
            return
        columns: list[Any] = [BarColumn(bar_width=16), TextColumn("{task.fields[line]}")]
        self._progress = Progress(*columns, console=self.console, auto_refresh=False)
        self._progress.start()
        self._task = self._progress.add_task("", total=run.total_steps, completed=run.step, line="")

    def resume(self, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        """Say after which step the run resumes; the curve will show the whole run."""
        reports = [report for report in history if isinstance(report, StepReport)]
        self._steps, self._losses, self._telling = [], [], {}
        self._shown = False
        if self._progress is None:
            self.start(run)
        else:
            self._progress.update(self._task, completed=run.step)
        for report in reports:
            self._note(report)
        if run.step:
            self._print(f"resuming after step {run.step}" + (f" of {run.total_steps}" if run.total_steps else ""))

    def step(self, run: Run, report: StepReport) -> None:
        """Draw or print the step, but not every one."""
        self._note(report)
        # a running mean, since one slow step must not swing the time left
        seconds = report.seconds
        self._seconds = seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * seconds
        last = report.step == run.total_steps
        if self._progress is not None:
            begun = self.clock()
            if last or begun >= self._next_draw:
                line = step_line(report, run.total_steps, self._seconds, self._headline)
                self._progress.update(self._task, completed=report.step, line=line, refresh=True)
                self._next_draw = begun + max(REDRAW_SECONDS, (self.clock() - begun) / REDRAW_SHARE)
        elif last or not self._shown or report.step % self._interval(run.total_steps) == 0:
            self._print(step_line(report, run.total_steps, self._seconds, self._headline))
            self._shown = True

    def evaluated(self, run: Run, evaluation: Evaluation) -> None:
        """One line for the evaluation."""
        self._print(evaluation_line(evaluation))

    def end(self, run: Run, outcome: Outcome) -> None:
        """End the live line and show the curves."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        # braille needs a terminal or file that can hold it
        if self.options.curve and self.console.encoding.lower().startswith("utf"):
            self._draw("training loss", self._steps, self._losses)
            for name, points in self._telling.items():
                self._draw(name, [step for step, _ in points], [value for _, value in points])

    def _draw(self, title: str, steps: Sequence[int], values: Sequence[float]) -> None:
        lines = chart(steps, values, width=min(self.console.width, 76))
        if lines:
            self._print("\n".join([title, *lines]))

    def _note(self, report: StepReport) -> None:
        """For the curves."""
        self._steps.append(report.step)
        self._losses.append(report.loss)
        for name, _ in telling(report, self._headline)[:1]:
            self._telling.setdefault(name, []).append((report.step, report.metrics[name]))

    def _interval(self, total: int | None) -> int:
        return self.options.every or max(1, (total or 50 * PLAIN_LINES) // PLAIN_LINES)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def telling(report: StepReport, headline: Sequence[str]) -> list[tuple[str, str]]:
    """Metrics of a step that a method names as its headline, each with the arrow behind its name: the first one that
    the step has, and all that have an arrow."""
    split = [(name, arrow) for name, _, arrow in (given.partition(" ") for given in headline) if name in report.metrics]
    return [*split[:1], *(pair for pair in split[1:] if pair[1])]


def step_line(report: StepReport, total: int | None, seconds: float, headline: Sequence[str] = ()) -> str:
    """Step, loss, the method's own headline, speed (and how much of what the device can do that is), time left, memory
    and learning rate.

    Args:
        total: steps of the run, None if unknown.
        seconds: one step takes about so long.
    """
    parts = [
        f"step {report.step}" + (f"/{total}" if total else ""),
        f"loss {report.loss:.4f}",
        *(f"{name} {report.metrics[name]:.4g} {arrow}".rstrip() for name, arrow in telling(report, headline)),
        f"{report.tokens_per_second:,.0f} tok/s" + (f" ({report.mfu:.0%} MFU)" if report.mfu else ""),
    ]
    if total:
        parts.append(f"ETA {duration((total - report.step) * seconds)}")
    if report.memory:
        parts.append(size(report.memory))
    parts.append(f"lr {report.learning_rate:.2e}")
    if report.skipped:
        parts.append("skipped (overflow)")
    return " · ".join(parts)


def evaluation_line(evaluation: Evaluation) -> str:
    """Metrics, with what a trivial answer would score."""
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in evaluation.metrics.items())
    asides = [f"{name} {value:.4g}" for name, value in evaluation.baselines.items()]
    if evaluation.rows:
        asides.append(f"{evaluation.rows:,} row{'s' * (evaluation.rows != 1)}")
    title = "" if evaluation.name in evaluation.metrics else f"{evaluation.name}: "
    return f"eval at step {evaluation.step} · {title}{metrics}" + (f" ({'; '.join(asides)})" if asides else "")


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def build(options: ConsoleOptions, context: Context) -> ConsoleTracker:
    """Builder of the tracker `console`."""

    def headline(method: str) -> Sequence[str]:
        entry = next(
            (registered.entry for registered in context.catalog.all("method") if registered.full_name == method), None
        )
        return entry.headline if isinstance(entry, Method) else ()

    return ConsoleTracker(options, Console(emoji=False), headline=headline)
