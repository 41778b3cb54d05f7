"""A table of the used and left-out rows of every split."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks.reports import DataReport
from finetooth_toolbox.cli.tables import table
from finetooth_toolbox.text.controls import escape_controls
from rich.console import Console, Group, RenderableType
from rich.text import Text

from finetooth_rows.choices import left_out


def data_table(console: Console, reports: Iterable[DataReport], every: Iterable[DataReport] = ()) -> RenderableType:
    """The table; a line reports a split with many rows left out.

    Args:
        every: all reports, if several readers read the rows of one split.
    """
    reports = list(reports)
    headers = ("split", "rows", "used", "tokens", "trained tokens", "longest", "left out or changed")
    rows = [
        (
            report.split,
            *(
                f"{number:,}"
                for number in (report.rows, report.used, report.tokens, report.trained_tokens, report.longest)
            ),
            "; ".join(_remarks(report)) or "-",
        )
        for report in reports
    ]
    made = table(console, "Data", headers, rows, numbers=5)
    many = list(dict.fromkeys(left_out.lines([*reports, *every])))
    return Group(made, *(Text(line, style="bold") for line in many)) if many else made


def _remarks(report: DataReport) -> list[str]:
    dropped = []
    for reason, count in report.dropped.items():
        ids = ", ".join(report.dropped_ids.get(reason, ()))
        dropped.append(f"{count:,} left out: {reason}" + (f" ({ids}{', ...' if count > 5 else ''})" if ids else ""))
    changed = [f"{count:,} changed: {reason}" for reason, count in report.changed.items()]
    return [escape_controls(line) for line in (*dropped, *changed, *report.notes)]
