"""The summary at the end of a run: scores before and after, and some answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetooth_hooks.reports import Evaluation, Outcome, Sample
from finetooth_toolbox.cli.tables import Row, duration, table
from finetooth_toolbox.text.controls import escape_controls
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

SAMPLES = 3
"""Number of answers side by side."""

PROMPT_TAIL = 240
"""Number of shown characters of a prompt, from its end, where the question is."""


def summary_parts(console: Console, outcome: Outcome, evaluations: Sequence[Evaluation]) -> list[RenderableType]:
    """Scores before and after, each with the score of a trivial answer, and some answers side by side."""
    pairs = _before_and_after(evaluations, outcome.artifact_step)
    parts = []
    if pairs:
        headers = ("held-out", "before", "after", "change", "rows", "for comparison")
        rows = (_score_row(*pair, outcome.artifact_step) for pair in pairs)
        parts.append(table(console, "Result", headers, rows, numbers=4))
    for first, last in pairs:
        if last is not None and last.samples:
            parts.append(_answers(console, first, last))
    ended = f"{outcome.status} after {steps_text(outcome.steps)} in {duration(outcome.seconds)}"
    if outcome.artifact_step not in (None, outcome.steps):
        ended += f", the artifact is of step {outcome.artifact_step}"
    parts.append(Text(f"{ended}: {outcome.reason}" if outcome.reason else ended))
    return parts


Pair = tuple[Evaluation | None, Evaluation | None]
"""An evaluator's evaluation before the first step, and that of the artifact or the last one before it."""


def _before_and_after(evaluations: Sequence[Evaluation], step: int | None) -> list[Pair]:
    """The evaluations before and after, by evaluator.

    Args:
        step: of the artifact; None without artifact: take the last evaluation.
    """
    by_evaluator: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:  # two evaluators of the same name may measure different metrics
        key = evaluation.name, next(iter(evaluation.metrics), "")
        by_evaluator.setdefault(key, []).append(evaluation)
    pairs: list[Pair] = []
    for own in by_evaluator.values():
        first = own[0] if own[0].step == 0 else None
        later = [evaluation for evaluation in own if evaluation.step and (step is None or evaluation.step <= step)]
        if first is not None or later:
            pairs.append((first, later[-1] if later else None))
    return pairs


def _score_row(first: Evaluation | None, last: Evaluation | None, step: int | None) -> Row:
    """Cells of an evaluator's row.

    Args:
        step: of the artifact; the row of another step's evaluation names that step.
    """
    shown = last if last is not None else first
    assert shown is not None
    metric = next(iter(shown.metrics), "")
    before, after = (None if end is None else end.metrics.get(metric, float("nan")) for end in (first, last))
    known = [value for value in (before, after) if value is not None]
    share = shown.higher_is_better and all(0 <= value <= 1 for value in known)
    change = "-"
    if before is not None and after is not None:
        change = f"{100 * (after - before):+.1f} points" if share else f"{after - before:+.3f}"
    label = metric if metric == shown.name else f"{shown.name} {metric}".strip()
    baselines = ", ".join(f"{name} {score(number, share)}" for name, number in shown.baselines.items())
    cells = ["-" if value is None else score(value, share) for value in (before, after)]
    if last is not None and step is not None and last.step != step:
        cells[1] += f" (step {last.step})"
    return label, *cells, change, f"{shown.rows:,}", baselines or "-"


def _answers(console: Console, first: Evaluation | None, last: Evaluation) -> RenderableType:
    """The same questions, answered before and after."""
    before = {sample.id: _escaped(sample) for sample in first.samples} if first is not None else {}
    samples = sorted(map(_escaped, last.samples), key=lambda sample: _telling(before.get(sample.id), sample))[:SAMPLES]
    if console.is_terminal:
        made = Table(header_style="dim", show_lines=True)
        for header in ("question", "before", "after", "expected"):
            made.add_column(header, overflow="fold", ratio=2 if header == "question" else 1)
        for sample in samples:
            old = before.get(sample.id)
            made.add_row(Text(_tail(sample.prompt)), _answer(old), _answer(sample), Text(sample.expected.strip()))
        return Group(Text("Answers", style="bold"), made)
    lines = ["Answers"]
    for sample in samples:
        old = before.get(sample.id)
        lines.append(f"  question  {_one_line(_tail(sample.prompt))}")
        lines.append(f"  before    {_one_line(old.answer) if old is not None else '-'}")
        lines.append(f"  after     {_one_line(sample.answer)}")
        lines.append(f"  expected  {_one_line(sample.expected)}")
        lines.append("")
    return Text("\n".join(lines[:-1]))


def _escaped(sample: Sample) -> Sample:
    """A sample with escaped texts, since they come from a model and a row."""
    prompt, answer, expected = map(escape_controls, (sample.prompt, sample.answer, sample.expected))
    return replace(sample, prompt=prompt, answer=answer, expected=expected)


def _telling(before: Sample | None, after: Sample) -> int:
    """Rank of a sample: changed answers come first, otherwise in the evaluator's order."""
    return 0 if before is not None and before.score != after.score else 1


def _answer(sample: Sample | None) -> Text:
    if sample is None:
        return Text("-")
    return Text(
        sample.answer.strip() or "(nothing)", style="green" if sample.score >= 1 else "red" if sample.score <= 0 else ""
    )


def score(number: float, share: bool) -> str:
    """A metric as text: shares of one as percent."""
    return f"{100 * number:.1f} %" if share else f"{number:.3f}"


def _tail(text: str) -> str:
    text = text.strip()
    return text if len(text) <= PROMPT_TAIL else f"...{text[-PROMPT_TAIL:]}"


def steps_text(number: int, noun: str = "step") -> str:
    """A number of steps with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"
