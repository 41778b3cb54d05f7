"""Held-out rows that a run also trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetooth_hooks.data.preparation import Limit, PreparedAs
from finetooth_hooks.data.recipe_rows import Decided
from finetooth_hooks.errors import DataError
from finetooth_hooks.reports import DataReport

from finetooth_rows.choices.repeats import Digests, Repeats, digests_of, shared
from finetooth_rows.tally import SPLIT

COMPARED = 50_000
"""Largest number of rows that are compared before a run, which takes a second or two."""


@dataclass(frozen=True)
class NotCompared:
    """The result if held-out rows were not compared with training rows.

    Attributes:
        reason: `there are 80,000 rows, more than 50,000`.
        later: `ft data check` compares them, which may take long.
    """

    reason: str
    later: bool = True


def overlap(job: Decided) -> Repeats | NotCompared:
    """Held-out rows that a run also trains. They are not compared if the run streams its rows, or if it would take
    noticeable time: more than `COMPARED` rows, or rows that are not stored and must be made again."""
    prepared = job.prepared_as
    if not {"train", "eval"} <= prepared.keys():
        return Repeats()
    known = {split: how for split, how in prepared.items() if not how.streamed}
    rows = sum(report.rows for report in job.reports)
    kept_nowhere = any(
        decision.setting.startswith("data.cache.") and decision.value == "off" for decision in job.plan.decisions
    )
    if len(known) < len(prepared):
        return NotCompared("rows are read while the run trains", later=False)
    if rows > COMPARED:
        return NotCompared(f"there are {rows:,} rows, more than {COMPARED:,}")
    if kept_nowhere:
        return NotCompared("their tokens are not saved")
    how = known["train"]
    report = next((report for report in job.reports if report.split == "train"), None)
    train = job.prepare("train", how.rendering, how.limit, first=how.first, quiet=True).data
    held_out = held_out_as_trained(job, known)
    return shared({"train": digests_of(train, cut_at(how.limit, report)), "eval": held_out or ()})


def cut_at(limit: Limit | None, report: DataReport | None) -> int | None:
    """Positions at which rows were split; None if no row was."""
    return limit.max_length if limit is not None and report is not None and report.changed.get(SPLIT) else None


def held_out_as_trained(job: Decided, known: Mapping[str, PreparedAs]) -> Digests | None:
    """Digests of held-out rows rendered for training, since an evaluator may render them differently; None if that
    fails."""
    how, first = known["train"], known["eval"].first
    limit = how.limit
    if limit is not None and limit.excess_length == "raise":
        limit = Limit(limit.max_length, "drop")
    try:
        prepared = job.prepare("eval", how.rendering, limit, first=first, quiet=True)
    except DataError:
        return None
    return digests_of(prepared.data, cut_at(limit, prepared.report))


def overlap_line(both: Repeats | NotCompared) -> str:
    """A line that held-out rows are in training too, or were not compared; empty if neither."""
    if isinstance(both, NotCompared):
        look = "; ft data check compares them" if both.later else ""
        return f"note: nobody checked whether rows of eval are in train too: {both.reason}{look}"
    if not both.count:
        return ""
    return f"note: {rows_of(both.count, 'eval', 'is', 'are')} in train too{named(both)}; its score says little"


def named(repeats: Repeats) -> str:
    """The first repeated rows, each with the earlier one, in brackets."""
    shown = ", ".join(f"{id_} = {earlier}" for id_, earlier in repeats.first)
    return f" ({shown}{', ...' if repeats.count > len(repeats.first) else ''})"


def rows_of(count: int, split: str, singular: str, plural: str) -> str:
    """The number of rows of a split, with the verb."""
    return f"1 row of {split} {singular}" if count == 1 else f"{count:,} rows of {split} {plural}"
