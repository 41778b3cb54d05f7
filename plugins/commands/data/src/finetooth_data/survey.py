"""What prepared data are like as a whole: lengths, repetitions, padding, and whose words train.

Lengths are positions: what the engine reads, and what `train.max_length` counts. A row of N + 1 tokens has N, since its
last token is only predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.data.examples import MediumKind
from finetooth_hooks.data.preparation import PreparedRows
from finetooth_hooks.data.recipe_rows import Decided
from finetooth_hooks.plan import TrainSettings
from finetooth_hooks.reports import DataReport
from finetooth_methods.batched import Batches
from finetooth_rows.choices.ahead import data_of_row
from finetooth_rows.choices.overlap import cut_at, held_out_as_trained
from finetooth_rows.choices.repeats import Digests, Repeats, digests_of, repeats, shared
from finetooth_rows.storage.token_rows import positions_of

Lengths = np.ndarray[Any, np.dtype[np.int64]]
Quantiles = tuple[int, int, int, int]
"""Positions of the shortest, the median, the 95th percentile and the longest."""
Steps = Sequence[Sequence[int]]
"""Positions of the data of each step."""

BINS = 10
"""Bars of the histogram."""


SAMPLED = 1000
"""Steps that are laid out, evenly spread over the first epoch."""


@dataclass(frozen=True)
class Survey:
    """The data of one split.

    Attributes:
        split: `train` or `eval`.
        noun: what a datum is: `row`, `window`.
        data: how many train, or are scored.
        quantiles, histogram: their positions; the second is (from, to, data) for equal ranges of length.
        rows: rows they were made of; a row that was split is one.
        documents: positions of these rows, where data are windows over them; else None.
        repeats: rows that are there twice.
        padded: share of positions that would be padding if every step were one rectangle; None for held-out data,
            which are scored all at once.
        budgeted: the same in rectangles of `train.micro_batch_tokens`, data of a step by length.
        laid_out: the same as the backend will lay data out; None if it does not say.
        roles: trained tokens by whose words they are, of all data; empty for rows other than conversations.
        media: of each kind that the rows hold (`image`, `audio`, `video`): how many rows have one, how many there are,
            and how many tokens they take.
    """

    split: str
    noun: str
    data: int
    quantiles: Quantiles
    histogram: tuple[tuple[int, int, int], ...]
    rows: int
    documents: Quantiles | None = None
    repeats: Repeats = field(default_factory=Repeats)
    padded: float | None = None
    budgeted: float | None = None
    laid_out: float | None = None
    roles: dict[str, int] = field(default_factory=dict)
    media: Mapping[MediumKind, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """All that is found.

    Attributes:
        surveys: of each split whose data are known ahead.
        in_both: held-out rows that are in training too.
        unread: splits whose rows are read while the run trains.
    """

    surveys: tuple[Survey, ...]
    in_both: Repeats
    unread: tuple[str, ...]


def survey(job: Decided) -> Findings:
    """Look at all data of a run as they will train."""
    known = {split: how for split, how in job.prepared_as.items() if not how.streamed}
    digests: dict[str, Digests] = {}
    surveys: list[Survey] = []
    for split, how in known.items():
        rows = job.prepare(split, how.rendering, how.limit, first=how.first).data
        report = next((report for report in job.reports if report.split == split), None)
        digests[split] = digests_of(rows, cut_at(how.limit, report))
        surveys.append(_survey(job, split, rows, digests[split], report))
    if "train" in known and "eval" in known:
        digests["eval"] = held_out_as_trained(job, known) or digests["eval"]
    unread = tuple(split for split in job.prepared_as if split not in known)
    return Findings(tuple(surveys), shared(digests), unread)


def _survey(job: Decided, split: str, rows: PreparedRows, digests: Digests, report: DataReport | None) -> Survey:
    data, noun = _data(job, split, rows)
    positions = positions_of(data)
    train, trains = job.plan.train, split == "train"
    budget = int(train.micro_batch_tokens or 0)
    steps = training_steps(positions, train, data_of_row(data)) if trains else [positions.tolist()]
    windows = data is not rows and len(data) != len(rows)
    return Survey(
        split=split,
        noun=noun,
        data=len(data),
        quantiles=quantiles(positions),
        histogram=histogram(positions),
        rows=len(digests),
        documents=quantiles(rows.positions) if windows else None,
        repeats=repeats(digests),
        padded=padding(steps) if trains else None,
        budgeted=padding(steps, budget) if trains else None,
        laid_out=None if job.padding is None else job.padding(steps),
        roles={} if report is None else dict(report.trained_by_role),
        media=_media(rows),
    )


def _data(job: Decided, split: str, rows: PreparedRows) -> tuple[Sequence[Datum], str]:
    """What of a split trains or is scored, and what one of it is called."""
    holders: Sequence[Any] = (job.method,) if split == "train" else job.evaluators
    return next(((holder.data, holder.noun) for holder in holders if len(holder.data)), (rows, "row"))


def _media(rows: PreparedRows) -> dict[MediumKind, tuple[int, int, int]]:
    by_kind: dict[MediumKind, tuple[int, int, int]] = {}
    for of_row in rows.media:
        for kind in dict.fromkeys(medium.medium.kind for medium in of_row):
            lengths = [medium.length for medium in of_row if medium.medium.kind == kind]
            rows_with, count, tokens = by_kind.get(kind, (0, 0, 0))
            by_kind[kind] = (rows_with + 1, count + len(lengths), tokens + sum(lengths))
    return by_kind


def quantiles(positions: Lengths) -> Quantiles:
    """Of at least one length."""
    low, median, high, most = (int(q) for q in np.quantile(positions, [0, 0.5, 0.95, 1.0], method="higher"))
    return low, median, high, most


def histogram(positions: Lengths) -> tuple[tuple[int, int, int], ...]:
    """Data by length, in at most `BINS` ranges of whole numbers."""
    low, high = int(positions.min()), int(positions.max())
    width = max(1, -(-(high - low + 1) // BINS))
    counts = Counter(((positions - low) // width).tolist())
    return tuple((low + i * width, min(low + (i + 1) * width - 1, high), counts[i]) for i in range(max(counts) + 1))


def training_steps(positions: Lengths, train: TrainSettings, of_row: int = 1) -> list[list[int]]:
    """Positions of the data of each step in the first epoch, in the order in which they train; of many steps `SAMPLED`,
    evenly spread.

    Args:
        of_row: so many data that follow each other are one row.
    """
    if len(positions) < of_row:
        return []
    rows = positions[: len(positions) // of_row * of_row].reshape(-1, of_row)
    batches = Batches.of(len(rows), train)
    taken = list(islice(batches, batches.steps_per_epoch))
    every = max(1, -(-len(taken) // SAMPLED))
    return [rows[batch].ravel().tolist() for batch in taken[::every]]


def padding(steps: Steps, budget: int | None = None) -> float:
    """Share of positions that are padding.

    Args:
        budget: positions of a micro-batch; data go into them by length, shortest first. None: a step is one rectangle.
    """
    computed = sum(len(step) * max(step) if budget is None else _within(sorted(step), budget) for step in steps)
    return 1 - sum(map(sum, steps)) / computed if computed else 0.0


def _within(ascending: Sequence[int], budget: int) -> int:
    """Positions of rows cut into rectangles within a budget."""
    positions, rows = 0, 0
    for i, length in enumerate(ascending):
        if rows and (rows + 1) * length > budget:
            positions += rows * ascending[i - 1]
            rows = 0
        rows += 1
    return positions + rows * ascending[-1]
