"""`ft score MODEL DATA`: what a reward model says of the rows of a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from finetooth_hooks import CommandContext, Context, DataError, Datum, UserError
from finetooth_hooks.data.problems import Problems
from finetooth_saving.moved_bases import base_moved
from finetooth_toolbox.text.controls import escape_controls

from finetooth_rewardmodel.rows import Question, question
from finetooth_rewardmodel.scorer import JOINED, Scored, Scorer, Steps


@dataclass
class Summary:
    """What is counted over all rows."""

    scores: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    labels: list[tuple[float, float]] = field(default_factory=list)
    steps: list[tuple[Any, Any]] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)


@click.command("score")
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.argument("settings", nargs=-1, metavar="[model=NEW]")
@click.option("--output", type=click.Path(path_type=Path), help="Write every row with its scores there, as JSON lines.")
@click.option("--format", "format_", help="The format of the rows; default: what the first row shows.")
@click.option(
    "--steps", type=click.Choice(list(JOINED)), default="min", show_default=True,
    help="How a process reward model's step scores become one score.",
)  # fmt: skip
@click.option("--separator", help="Where it splits an answer into steps; default: as in its training.")
@click.option("--limit", type=click.IntRange(min=1), help="Score only this many rows, the first ones.")
@click.option("--unusable", type=click.Choice(["raise", "drop"]), default="raise", show_default=True,
              help="What happens to rows that cannot be scored.")  # fmt: skip
@click.pass_obj
def command(
    obj: CommandContext, model: str, data: str, settings: tuple[str, ...], output: Path | None, format_: str | None,
    steps: Steps, separator: str | None, limit: int | None, unusable: str,
) -> None:  # fmt: skip
    """Score the rows of DATA with MODEL.

    MODEL is a run of method rm or prm, or a classifier of transformers with one label. Rows may be texts or
    conversations, pairs of a chosen and a rejected answer (how often the chosen one scores higher), answers with a
    label or in steps, or a prompt with several answers (which one is best). model=NEW says where the base of a run is
    now.
    """
    if output is not None and output.exists():
        raise UserError(f"--output: {output} exists", action="name another file; nothing was changed")
    if settings:
        click.get_current_context().with_resource(base_moved(obj.run_folder(model) or Path(model), settings))
    opened = obj.open(model, {"data": {"eval": data, **({"format": format_} if format_ else {})}})
    scorer = Scorer(opened, steps, separator)
    questions, left_out = read(scorer, limit, drops=unusable == "drop")
    summary, lines = Summary(), []
    scored = iter(scorer.score_data([datum for _, rows in questions for datum in rows]))
    for row, rows in questions:
        scores = [next(scored) for _ in rows]
        add(summary, row, scores)
        lines.append(as_row(row, scores))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report(opened.context, summary, len(questions), lines, left_out, output)


Asked = list[tuple[Question, list[Datum]]]


def read(scorer: Scorer, limit: int | None, *, drops: bool) -> tuple[Asked, list[DataError]]:
    """The rows of the file as questions with what is to be scored, and those that are left out.

    Raises:
        DataError: rows cannot be scored, and are not to be left out; or none is left.
    """
    rows = scorer.context.examples("eval").rows
    questions: Asked = []
    problems: list[DataError] = []
    for id_, example in rows if limit is None else rows[:limit]:
        try:
            entry = question(id_, example)
            questions.append((entry, [scorer.datum(text) for text in entry.texts]))
        except DataError as error:
            problems.append(error)
    if problems and not drops:
        refused = Problems.of(problems).error(len(questions) + len(problems))
        assert refused is not None
        raise refused
    if not questions:
        raise DataError("DATA", "no row can be scored", action="give rows with answers")
    return questions, problems


def add(summary: Summary, question: Question, results: Sequence[Scored]) -> None:
    """Count a row."""
    import numpy as np

    scores = [scored.score for scored in results]
    summary.scores += scores
    if question.kind == "pair":
        summary.margins.append(scores[0] - scores[1])
        lengths = [_length(text.answer) for text in question.texts]
        summary.lengths.append(float(lengths[0] - lengths[1]))
    elif question.kind == "labelled":
        summary.labels.append((scores[0], question.labels[0]))
    elif question.kind == "steps" and results[0].steps:
        labels = np.array(question.labels)
        judged = ~np.isnan(labels)
        summary.steps.append((np.array(results[0].steps)[judged] - 0.5, labels[judged] > 0.5))
    elif question.kind == "choice":
        summary.best.append(max(scores))
        summary.gains.append(max(scores) - sum(scores) / len(scores))


def _length(side: Any) -> int:
    return len(side) if isinstance(side, str) else sum(len(message.content) for message in side)


def as_row(question: Question, results: Sequence[Scored]) -> dict[str, Any]:
    """A row of the output."""
    line: dict[str, Any] = {"id": question.id, "kind": question.kind}
    scores = [scored.score for scored in results]
    if question.kind == "pair":
        line |= {"chosen": scores[0], "rejected": scores[1], "margin": scores[0] - scores[1]}
    elif question.kind == "choice":
        line |= {"scores": scores, "best": scores.index(max(scores))}
    else:
        line["score"] = scores[0]
    if any(scored.steps for scored in results):
        line["steps"] = [list(scored.steps) for scored in results] if len(results) > 1 else list(results[0].steps)
    if question.labels:
        labels = [None if math.isnan(label) else label for label in question.labels]
        line["label" if question.kind == "labelled" else "labels"] = (
            labels[0] if question.kind == "labelled" else labels
        )
    return line


def figures(context: Context, summary: Summary) -> list[tuple[str, str]]:
    """What the summary says, name and value."""
    import numpy as np
    from finetooth_methods.intervals import bootstrap, wilson

    scores = np.array(summary.scores)
    table = [
        ("texts", f"{len(scores):,}"),
        ("mean score", f"{scores.mean():.4f}"),
        ("deviation", f"{scores.std():.4f}"),
    ]
    if summary.margins:
        margins, lengths = np.array(summary.margins), np.array(summary.lengths)
        share = float(np.mean((margins > 0) + 0.5 * (margins == 0)))
        low, high = wilson(share, len(margins))
        longer = float(np.mean((lengths > 0) + 0.5 * (lengths == 0)))
        table += [
            ("pairs", f"{len(margins):,}"),
            ("chosen scores higher", f"{100 * share:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"),
            ("the longer answer would be", f"{100 * longer:.1f} %"),
            ("mean margin", f"{margins.mean():.4f}"),
        ]
    if summary.labels:
        predicted, labels = (np.array(part) for part in zip(*summary.labels, strict=True))
        table.append(("mean squared error to labels", f"{np.mean((predicted - labels) ** 2):.4f}"))
        if predicted.std() > 0 and labels.std() > 0:
            table.append(("correlation with labels", f"{np.corrcoef(predicted, labels)[0, 1]:.3f}"))
    if summary.steps:
        low, high = bootstrap(summary.steps, _balanced, context.generator("score"))
        balanced = 100 * _balanced(summary.steps)
        table.append(("steps, balanced accuracy", f"{balanced:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"))
    if summary.best:
        table += [
            ("best of several, mean score", f"{np.mean(summary.best):.4f}"),
            ("above the mean of its row", f"{np.mean(summary.gains):.4f}"),
        ]
    return table


def _balanced(answers: Sequence[Any]) -> float:
    """The mean of the accuracies of right and of wrong steps."""
    import numpy as np

    values, labels = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    called = values > 0
    parts = [float((called[labels == kind] == kind).mean()) for kind in (True, False) if (labels == kind).any()]
    return sum(parts) / len(parts)


def report(
    context: Context, summary: Summary, rows: int, lines: Sequence[dict[str, Any]],
    left_out: Sequence[DataError], output: Path | None,
) -> None:  # fmt: skip
    """Print the table."""
    table = figures(context, summary)
    width = max(len(name) for name, _ in table)
    click.echo(f"{rows:,} row{'s' * (rows != 1)}")
    for name, value in table:
        click.echo(f"  {name.ljust(width)}  {value}")
    if output is None:
        click.echo("first rows")
        for line in lines[:5]:
            values = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items() if k not in ("id", "kind")}
            shown = "  ".join(f"{name} {value}" for name, value in values.items())
            click.echo(f"  {escape_controls(line['id'])}  {shown}")
    for error in left_out[:5]:
        click.echo(f"left out: {escape_controls(error.problem)}")
    if len(left_out) > 5:
        click.echo(f"left out: {len(left_out) - 5} more")
    if output is not None:
        click.echo(f"wrote {output}")
