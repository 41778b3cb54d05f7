"""Rows that are left out, and the shares above which a command warns or asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetooth_hooks.errors import DataError
from finetooth_hooks.reports import DataReport

from finetooth_rows.choices.choosing import DEDUPLICATE
from finetooth_rows.tally import IN_A_PIECE, LENGTH_SETTINGS

SAID = 0.1
"""A larger share of a split gets a separate line."""
ASKED = 0.5
"""Above this share of the training rows, the user must confirm."""
SETTING = "data.accept_dropped"

_MEND = {LENGTH_SETTINGS: "raise train.max_length, or set train.excess_length to truncate, truncate_turns or split"}


@dataclass(frozen=True)
class LeftOut:
    """Rows of a split that are left out.

    Attributes:
        rows: number in the split; number of examples if the format makes several of a row.
        reasons: number of rows, by reason.
        settings: the responsible setting by reason, if a setting is responsible.
    """

    split: str
    rows: int
    reasons: dict[str, int]
    settings: dict[str, str]

    @property
    def count(self) -> int:
        """Number of all rows left out."""
        return sum(self.reasons.values())

    @property
    def share(self) -> float:
        """Share of all rows, 0 to 1."""
        return min(1.0, self.count / self.rows) if self.rows else 0.0

    @property
    def line(self) -> str:
        """One line with number, reasons and settings."""
        reasons = (
            f"{count:,} {reason}" + (f" ({self.settings[reason]})" if reason in self.settings else "")
            for reason, count in sorted(self.reasons.items(), key=lambda pair: -pair[1])
        )
        return (
            f"data.{self.split}: {100 * self.share:.0f} % of the rows are left out, {self.count:,} of {self.rows:,}: "
            f"{'; '.join(reasons)}"
        )


def left_out_rows(report: DataReport, *, unasked: bool = False) -> LeftOut:
    """The rows left out according to a report.

    Args:
        unasked: only rows that no setting, such as `data.deduplicate`, asks to leave out.
    """
    reasons = {
        reason: count
        for reason, count in report.dropped.items()
        if reason != IN_A_PIECE and not (unasked and report.settings.get(reason) == DEDUPLICATE)
    }
    return LeftOut(report.split, max(report.rows, report.examples), reasons, dict(report.settings))


def lines(reports: Sequence[DataReport]) -> list[str]:
    """A line for every split with many rows left out."""
    splits = (left_out_rows(report) for report in reports)
    return [split.line for split in splits if split.share > SAID]


def refuse_most(reports: Sequence[DataReport]) -> None:
    """Raise an error if most training rows are left out without a setting that asks for it.

    Raises:
        DataError: most of the training rows are left out; gives the reasons, and the way to accept it.
    """
    for report in reports:
        dropped = left_out_rows(report, unasked=True)
        if report.split != "train" or dropped.share <= ASKED:
            continue
        mends = [_MEND[setting] for setting in dict.fromkeys(dropped.settings.values()) if setting in _MEND]
        accept = f"if that is meant, say so with --accept-dropped or {SETTING}=true"
        raise DataError("", dropped.line, action="; ".join([*mends, accept]))
