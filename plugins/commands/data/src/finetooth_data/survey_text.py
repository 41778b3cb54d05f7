"""What data are like, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks.data.examples import PLURALS
from finetooth_hooks.plan import Decision
from finetooth_rows.choices.ahead import time_line
from finetooth_rows.choices.overlap import named, overlap_line, rows_of
from finetooth_toolbox.cli.tables import table, value
from finetooth_toolbox.text.controls import escape_controls
from rich.console import Console, RenderableType
from rich.text import Text

from finetooth_data.expectation import Expectation
from finetooth_data.survey import Findings, Survey

BAR = 40
"""Width of the longest bar, in characters."""
LENGTHS = "Tokens are those that are read, as train.max_length counts them: a row's last token is only predicted."


def settled(console: Console, decisions: Sequence[Decision]) -> RenderableType:
    """How the data are read, and why so: source, format, renderer, files, cache."""
    rows = [(decision.setting, value(decision.value), decision.reason) for decision in decisions]
    return table(console, "How they are read", ("setting", "value", "because"), rows)


def render(survey: Survey) -> Text:
    """Lengths, and what there is to say of one split."""
    low, median, high, most = survey.quantiles
    lines = [
        f"Lengths of {survey.split}: {_counted(survey.data, survey.noun)} of {low:,} to {most:,} tokens, median "
        f"{median:,}, 95 % within {high:,}"
    ]
    largest = max(count for _, _, count in survey.histogram)
    width = len(str(survey.histogram[-1][1]))
    for start, stop, count in survey.histogram:
        bar = "\u2588" * round(BAR * count / largest) or ("\u258f" if count else "")
        lines.append(f"  {start:>{width}}-{stop:<{width}}  {bar:<{BAR}}  {count:,}")
    if survey.documents is not None:
        low, median, high, most = survey.documents
        lines.append(
            f"  cut from {_counted(survey.rows, 'document')} of {low:,} to {most:,} tokens, median {median:,}, 95 % "
            f"within {high:,}"
        )
    elif survey.data != survey.rows:
        lines.append(f"  made of {_counted(survey.rows, 'row')}")
    if survey.roles:
        by_role = ", ".join(f"{role} {count:,}" for role, count in survey.roles.items())
        lines.append(f"  trained tokens by role: {by_role}")
    for kind, (rows, count, tokens) in survey.media.items():
        lines.append(f"  {PLURALS[kind]}: {count:,} in {_counted(rows, 'row')}, {tokens:,} tokens")
    if padding := _padding(survey):
        lines.append(f"  padding: {padding}")
    return Text("\n".join(lines))


def _padding(survey: Survey) -> str:
    parts = (
        (survey.padded, "if each step were one rectangle"),
        (survey.budgeted, "in micro-batches by length"),
        (survey.laid_out, "as it will be laid out"),
    )
    return ", ".join(f"{100 * share:.1f} % {how}" for share, how in parts if share is not None)


def choice(decisions: Sequence[Decision]) -> Text:
    """Which rows the recipe takes of each source, and why not the others."""
    lines = [
        f"  {decision.setting.removesuffix('.rows')}: {decision.value:,} rows: {decision.reason}"
        for decision in decisions
    ]
    return Text("\n".join(["Rows taken", *lines]))


def verdict(findings: Findings, ahead: Expectation, notes: Sequence[str], device: str) -> Text:
    """How long the run will be, and what a person should look at.

    Args:
        notes: of the plan.
        device: what computes, with its precision.
    """
    lines = [LENGTHS, *_ahead(ahead, device)]
    for survey in findings.surveys:
        if survey.repeats.count:
            lines.append(
                f"note: {rows_of(survey.repeats.count, survey.split, 'repeats', 'repeat')} an earlier one"
                f"{named(survey.repeats)}"
            )
    if findings.in_both.count:
        lines.append(overlap_line(findings.in_both))
    lines += [f"note: data.{split} is read while the run trains, so it is not counted" for split in findings.unread]
    return Text("\n".join([*lines, *(f"note: {escape_controls(note)}" for note in notes)]))


def _ahead(ahead: Expectation, device: str) -> list[str]:
    steps = "open" if ahead.steps is None else f"{ahead.steps:,}"
    passes = "" if ahead.epochs is None else f", {_epochs(ahead.epochs)} of {ahead.tokens:,} tokens"
    lines = [f"optimizer steps: {steps}{passes}"]
    lines.append(time_line(ahead.time or ahead.reason, device))
    return lines


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:.3g} epochs"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
