"""Counts used and left-out rows by portion, so that several processes get the same sum."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, takewhile, zip_longest
from typing import Any

from finetooth_hooks.data.problems import SHOWN, Problems, raise_together
from finetooth_hooks.errors import DataError
from finetooth_hooks.reports import DataReport

from finetooth_rows import openings

NOTHING_TRAINED = "nothing to train on"
IN_A_PIECE = f"{NOTHING_TRAINED} in a piece of a split row"
"""The only reason that counts pieces of rows, not rows."""
LENGTH_SETTINGS = "train.max_length, train.excess_length"
TOO_LONG = "longer than train.max_length"
TRUNCATED = "truncated to train.max_length"
SUMS = ("rows", "examples", "used", "tokens", "squares", "trained_tokens", "truncated", "one_sided", "split")
"""Counts that add up over portions of the rows."""
ONE_ANSWER = "only one answer was truncated, which tells the two apart"
SPLIT = "split at train.max_length"
OCTAVE = 8
"""Number of length classes per octave."""
LENGTH_SHARES = 33
"""Number of quantiles of the lengths of all data."""
NO_MESSAGE = "no message"
"""The role of tokens outside all messages of a conversation, or with an unknown message."""


def _remember(ids: dict[str, list[str]], what: str, id_: str) -> None:
    known = ids.setdefault(what, [])
    if len(known) < SHOWN:
        known.append(id_)


@dataclass
class Tally:
    """Counts over some rows; `merge` adds those of later rows.

    Attributes:
        rows: rows that were read.
        examples: number of examples: that of the rows, unless the format makes several of a row.
        used: examples that became data.
        tokens: input positions.
        squares: sum of the squares of each datum's positions, for their standard deviation.
        by_length: data by the logarithm of their positions, in steps of an eighth of an octave.
        beginning: the common beginning of all data in tokens, as far as compared; None without data.
        trained_tokens: targets that count.
        trained_by_role: trained tokens of conversations by the role of their message, or `NO_MESSAGE`.
        longest: positions of the longest datum.
        longest_id: row id of the longest datum.
        truncated: rows that were cut.
        one_sided: cut rows with one cut and one whole answer.
        split: rows that were split into several.
        shortest: positions of the shortest row left out for its length; 0 if no row was.
        dropped: rows left out, by reason.
        dropped_ids: their first few ids, by reason.
        settings: the responsible setting by reason, if a setting is responsible.
        remarks: number of rows by remark (`Rendered.remarks`).
        noticed: number of rows by possible fault (`Rendered.notices`).
        noticed_ids: their first few ids.
        settled: reasons of `dropped` that the recipe itself asks for (`LeftOut.settled`).
        unusable: rows that cannot be rendered or train nothing.
        refused: rows that are too long, if that is an error.
        notes: sentences for the user.
        openings: beginnings of the rows; see `openings.Counts`.
    """

    rows: int = 0
    examples: int = 0
    used: int = 0
    tokens: int = 0
    squares: int = 0
    trained_tokens: int = 0
    longest: int = 0
    longest_id: str = ""
    truncated: int = 0
    one_sided: int = 0
    split: int = 0
    shortest: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_ids: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    noticed: dict[str, int] = field(default_factory=dict)
    noticed_ids: dict[str, list[str]] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    by_length: list[int] = field(default_factory=list)
    beginning: list[int] | None = None
    trained_by_role: dict[str, int] = field(default_factory=dict)
    unusable: Problems = field(default_factory=Problems)
    refused: Problems = field(default_factory=Problems)
    notes: list[str] = field(default_factory=list)
    openings: openings.Counts = field(default_factory=dict)

    def drop(self, reason: str, id_: str, setting: str = "", *, settled: bool = False) -> None:
        """Count a row that is left out.

        Args:
            setting: the responsible setting; empty: only the data decide.
            settled: the recipe itself asks to leave out such rows.
        """
        if setting:
            self.settings[reason] = setting
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        _remember(self.dropped_ids, reason, id_)
        if settled and reason not in self.settled:
            self.settled.append(reason)

    def notice(self, text: str, id_: str) -> None:
        """Count a row with a notice."""
        self.noticed[text] = self.noticed.get(text, 0) + 1
        _remember(self.noticed_ids, text, id_)

    def merge(self, later: Tally) -> None:
        """Add the counts of later rows."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        if later.longest > self.longest:
            self.longest, self.longest_id = later.longest, later.longest_id
        self.by_length = [a + b for a, b in zip_longest(self.by_length, later.by_length, fillvalue=0)]
        if later.beginning is not None:
            before = later.beginning if self.beginning is None else self.beginning
            pairs = zip(before, later.beginning, strict=False)
            self.beginning = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        self.shortest = min(filter(None, (self.shortest, later.shortest)), default=0)
        for counts, more in (
            (self.dropped, later.dropped),
            (self.remarks, later.remarks),
            (self.noticed, later.noticed),
            (self.trained_by_role, later.trained_by_role),
        ):
            for reason, count in more.items():
                counts[reason] = counts.get(reason, 0) + count
        self.settings |= later.settings
        for ours, theirs in ((self.dropped_ids, later.dropped_ids), (self.noticed_ids, later.noticed_ids)):
            for reason, ids in theirs.items():
                known = ours.setdefault(reason, [])
                known += ids[: SHOWN - len(known)]
        self.settled += [reason for reason in later.settled if reason not in self.settled]
        self.unusable.merge(later.unusable)
        self.refused.merge(later.refused)
        self.notes += [note for note in later.notes if note not in self.notes]
        openings.merge(self.openings, later.openings)

    def check(self) -> None:
        """Checks that no row was refused.

        Raises:
            DataError: rows are too long and that is an error, or rows are unusable; one error for all.
        """
        noun = "rows" if self.examples == self.rows else "examples"
        wrong = self.refused.error(self.examples, noun, counted=True), self.unusable.error(self.examples, noun)
        raise_together([error for error in wrong if error is not None])

    @property
    def deviation(self) -> float:
        """Standard deviation of the data's positions."""
        mean = self.tokens / max(1, self.used)
        return math.sqrt(max(0.0, self.squares / max(1, self.used) - mean**2))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of the data at equal shares, within 5 %; see `DataReport.lengths`."""
        ends = list(accumulate(self.by_length))
        if not self.used or not ends:
            return ()
        places = (share * (ends[-1] - 1) // (LENGTH_SHARES - 1) for share in range(LENGTH_SHARES))
        rounded = (round(2 ** (bisect_right(ends, place) / OCTAVE)) for place in places)
        return tuple(min(length, self.longest) for length in rounded)

    def report(self, split: str) -> DataReport:
        """The counts as a report."""
        changed = ((TRUNCATED, self.truncated), (ONE_ANSWER, self.one_sided), (SPLIT, self.split))
        return DataReport(
            split=split,
            rows=self.rows,
            examples=self.examples,
            used=self.used,
            dropped=dict(self.dropped),
            dropped_ids={reason: tuple(ids) for reason, ids in self.dropped_ids.items()},
            settings=dict(self.settings),
            changed={what: n for what, n in changed if n},
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            trained_by_role=dict(self.trained_by_role),
            longest=self.longest,
            longest_id=self.longest_id,
            length_deviation=self.deviation,
            lengths=self.lengths,
            beginning=len(self.beginning or ()),
            notes=(*self._examples_note(), *self.notes, *self._notices()),
            settled=tuple(self.settled),
        )

    def _notices(self) -> Iterator[str]:
        """Notices about possible faults, with the first few rows of each."""
        for text, count in self.noticed.items():
            ids = ", ".join(self.noticed_ids[text])
            yield f"{count:,} row{'s' if count != 1 else ''} ({ids}{', ...' if count > SHOWN else ''}): {text}"

    def _examples_note(self) -> tuple[str, ...]:
        """A note that rows gave several examples, or none; empty otherwise."""
        if self.examples == self.rows:
            return ()
        rows, examples = (f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in
                          ((self.rows, "row"), (self.examples, "example")))  # fmt: skip
        return (f"{rows} gave {examples}",)

    def nothing_left(self, split: str, max_length: int) -> DataError:
        """The error for a split without usable rows."""
        figures = {TOO_LONG: f" {max_length} (the shortest has {self.shortest} tokens)"}
        for reason, ids in self.dropped_ids.items():
            figures.setdefault(reason, f" ({', '.join(ids)}{', ...' if self.dropped[reason] > len(ids) else ''})")
        reasons = "; ".join(f"{count} {reason}{figures.get(reason, '')}" for reason, count in self.dropped.items())
        longer = any(TOO_LONG in reason or "trunca" in reason or "max_length" in reason for reason in self.dropped)
        return DataError(
            f"data.{split}",
            f"no row can be used: {reasons or 'it has no rows'}",
            action="raise train.max_length or change the data" if longer else "change the data or the trained parts",
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        content = {name: value for name, value in vars(self).items() if name not in ("unusable", "refused")}
        return {**content, "unusable": self.unusable.as_json(), "refused": self.refused.as_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """From `as_json`."""
        problems = {name: Problems.from_json(content[name]) for name in ("unusable", "refused")}
        return cls(**{**content, **problems})
