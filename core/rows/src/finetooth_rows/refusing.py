"""Rows that a format left out, for a method whose unusable rows are an error."""

from __future__ import annotations

from finetooth_hooks.errors import DataError
from finetooth_hooks.reports import DataReport

from finetooth_rows.groups import MEDIUM_CUT, ONE_SIDED, PROMPT_TOO_LONG
from finetooth_rows.tally import TOO_LONG

BY_LENGTH = frozenset({TOO_LONG, PROMPT_TOO_LONG, ONE_SIDED, MEDIUM_CUT})
"""Reasons that depend on `train.excess_length`."""


def refuse_left_out(report: DataReport, setting: str) -> None:
    """Raise an error if the format left out rows that teach nothing, for a method that must refuse such rows.

    Args:
        setting: the setting that asks for it, `method.bad_rows`.

    Raises:
        DataError: rows were left out for another reason than their length, and the recipe does not ask for it
            (`data.format.unusable: drop`); names the first of them.
    """
    passed = BY_LENGTH | set(report.settled)
    refused = {reason: count for reason, count in report.dropped.items() if reason not in passed}
    if not refused:
        return
    named = {reason: ", ".join(report.dropped_ids.get(reason, ())) for reason in refused}
    action = f"remove the row, or set {setting} to drop"
    if sum(refused.values()) == 1:
        (reason,) = refused
        raise DataError(named[reason], reason, action=action)
    reasons = "; ".join(f"{count} {reason} ({named[reason]})" for reason, count in refused.items())
    raise DataError(f"data.{report.split}", f"rows cannot be used: {reasons}", action=action.replace("row,", "rows,"))
