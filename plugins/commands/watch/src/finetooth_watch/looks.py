"""What the screen shows of a run, as plain lines and numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetooth_saving.runs.advice import advice
from finetooth_saving.runs.recorded import Recorded
from finetooth_toolbox.text.controls import escape_controls
from finetooth_toolbox.text.measures import size

FIGURES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch", "mfu")
MOST_SAMPLES = 5


@dataclass(frozen=True)
class Look:
    """One look at a run.

    Attributes:
        title: name, status and why it ended.
        progress: share of the steps done, 0 to 1; None if it is not known.
        pace: steps, time so far, time left.
        advice: what its reports show to be wrong, and what to do; empty if nothing is.
        losses: of every step.
        figures: of the last step, name and value.
        evaluations: rows of step, metric, value.
        answers: question, answer and what was expected, of the last evaluation or step that has any.
    """

    title: str
    progress: float | None
    pace: str
    advice: str
    losses: tuple[float, ...]
    figures: tuple[tuple[str, str], ...]
    evaluations: tuple[tuple[str, str, str], ...]
    answers: tuple[tuple[str, str, str], ...]


def look(run: Recorded) -> Look:
    """A look at a run as its folder tells of it now."""
    total = run.total_steps
    title = f"{run.name}  {run.status}" + (f": {run.reason}" if run.reason else "")
    last: Mapping[str, Any] = run.steps[-1] if run.steps else {}
    figures = [(name, _number(last.get(name))) for name in FIGURES if name in last]
    figures += [(name, _number(value)) for name, value in (last.get("metrics") or {}).items()]
    if last.get("memory"):
        figures.append(("memory", size(last["memory"])))
    evaluations = [
        (str(evaluation["step"]), f"eval/{name}", _number(value))
        for evaluation in run.evaluations
        for name, value in (evaluation.get("metrics") or {}).items()
    ]
    return Look(
        escape_controls(title),
        min(1.0, run.step / total) if total else None,
        _pace(run),
        "\n".join(map(escape_controls, advice(run))),
        tuple(value for _, value in run.series().get("loss", [])),
        tuple(figures),
        tuple(evaluations),
        _answers(run),
    )


def _pace(run: Recorded) -> str:
    steps = f"step {run.step}" + (f" of {run.total_steps}" if run.total_steps is not None else "")
    parts = [steps, _duration(run.seconds)]
    recent = [float(report.get("seconds") or 0) for report in run.steps[-20:]]
    if run.status == "running" and run.total_steps and recent:
        left = (run.total_steps - run.step) * sum(recent) / len(recent)
        parts.append(f"about {_duration(left)} left")
    if run.began:
        parts.append(time.strftime("began %Y-%m-%d %H:%M", time.localtime(run.began)))
    return " - ".join(parts)


def _answers(run: Recorded) -> tuple[tuple[str, str, str], ...]:
    with_samples = [report for report in (*run.evaluations, *run.steps) if report.get("samples")]
    if not with_samples:
        return ()
    newest = max(with_samples, key=lambda report: int(report["step"]))
    return tuple(
        (_line(sample.get("prompt")), _line(sample.get("answer")), _line(sample.get("expected")))
        for sample in newest["samples"][:MOST_SAMPLES]
    )


def _line(text: Any) -> str:
    return escape_controls(" ".join(str(text or "").split()))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not finite"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
