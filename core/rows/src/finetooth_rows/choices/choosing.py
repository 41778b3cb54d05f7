"""Chooses rows and their repetitions: slices, duplicates, held-out rows, and the share of each source in an epoch.

This process reads the rows of all sources once. It first slices each source, then leaves out repetitions of earlier
rows, then holds some rows out, and mixes the rest. The result is a number for each row.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from finetooth_hooks.data.examples import LeftOut, Row, examples_in
from finetooth_hooks.data.problems import Problems
from finetooth_hooks.errors import DataError, RecipeError, install_command
from numpy.typing import NDArray

from finetooth_rows.choices.choice import Choice, Chosen, SourceChoice
from finetooth_rows.choices.content import NearRows, digest, lot
from finetooth_rows.choices.slices import Slice
from finetooth_rows.picked import PickedFormat, PickedSource
from finetooth_rows.read_so_far import Reading
from finetooth_rows.tally import Tally
from finetooth_rows.work import broken_rows_first, no_rows, rows_of, work_of_source

DEDUPLICATE = "data.deduplicate"
REPEATED = "the same as an earlier row"
NEARLY_REPEATED = "nearly the same as an earlier row"

_LEFT, _TRAIN, _EVAL, _DRAWN = 0, 1, 2, 3
"""The place of a row; rows with a lot are decided after all lots are drawn."""


@dataclass
class _Source:
    """Results for one source. `size` is the number of its rows, if they had to be counted; `lots` belong to its rows
    that may be held out."""

    size: int | None = None
    sizes: array[int] = field(default_factory=lambda: array("q"))
    kinds: bytearray = field(default_factory=bytearray)
    lots: array[int] = field(default_factory=lambda: array("Q"))
    repeated: int = 0
    near: int = 0

    def count(self, kind: int) -> int:
        return self.kinds.count(kind)


class _Pass:
    """Reads the rows and decides for each whether it is left out, trained or held out."""

    def __init__(self, choice: Choice, formats: Sequence[PickedFormat]) -> None:
        self._choice, self._formats = choice, formats
        self._seen: set[bytes] = set()
        self._near = _near(choice)
        self.dropped = Tally()

    def read(
        self, choice: SourceChoice, index: int, sources: Sequence[PickedSource], broken: dict[int, Problems]
    ) -> _Source:
        size = _size(index, sources) if choice.slice is not None and choice.slice.needs_size else None
        wanted = _wanted(choice, size)
        if size and not wanted:
            raise _takes_none(choice, size)
        source = _Source(size)
        for work in work_of_source(index, sources[index]):
            begin = len(source.kinds)
            for item in rows_of(sources, work):
                place = len(source.kinds)
                if place >= wanted.stop:
                    break
                if not isinstance(item, Row) and place in wanted:
                    broken.setdefault(index, Problems()).add(item)
                source.kinds.append(self._kind(item, source, index) if place in wanted else _LEFT)
            source.sizes.append(len(source.kinds) - begin)
            if len(source.kinds) >= wanted.stop:
                break
        if not source.kinds:
            raise no_rows(sources[index])
        if not any(source.kinds) and not source.repeated + source.near:
            raise _takes_none(choice, len(source.kinds))  # all rows are read: the slice begins after the last
        return source

    def _kind(self, item: Row | DataError, source: _Source, index: int) -> int:
        """Kind of a row. A row that is unreadable or gives no example stays, so that the final reading of the rows
        reports it."""
        if not self._choice.by_content or not isinstance(item, Row):
            return _TRAIN
        try:
            read = examples_in(self._formats[index].format.read(item))
        except DataError:
            return _TRAIN
        examples = [example for example in read if not isinstance(example, LeftOut)]
        if not examples:
            return _TRAIN
        content = digest(*examples)
        if self._choice.deduplicate != "off":
            if content in self._seen:
                source.repeated += 1
                self._drop(REPEATED, item)
                return _LEFT
            self._seen.add(content)
        if self._near is not None and self._near.seen(*examples):
            source.near += 1
            self._drop(NEARLY_REPEATED, item)
            return _LEFT
        if not self._choice.fraction:
            return _TRAIN
        source.lots.append(lot(content, self._choice.fraction_seed))
        return _DRAWN

    def _drop(self, reason: str, row: Row) -> None:
        self.dropped.rows += 1
        self.dropped.examples += 1
        self.dropped.drop(reason, row.id, DEDUPLICATE)


def choose(choice: Choice, sources: Sequence[PickedSource], formats: Sequence[PickedFormat]) -> Chosen:
    """Read the rows and choose among them.

    Args:
        formats: of each source.

    Raises:
        DataError: a source is missing or has no rows, a slice or a split is empty; or a row of a slice cannot be read.
        RecipeError: the library for near duplicates is missing.
    """
    going = _Pass(choice, formats)
    reading = Reading()
    with broken_rows_first(sources, reading):
        taken = []
        for index, source in enumerate(choice.sources):
            taken.append(going.read(source, index, sources, reading.broken))
            reading.good[index] = len(taken[-1].kinds) - (reading.broken[index].count if index in reading.broken else 0)
    if choice.fraction:
        _hold_out(choice.fraction, taken)
    kinds = [np.frombuffer(bytes(source.kinds), np.uint8) for source in taken]
    trained = [(kind == _TRAIN).astype(np.uint32) for kind in kinds]
    held_out = [(kind == _EVAL).astype(np.uint32) for kind in kinds]
    times = mixed(choice, trained)
    decisions = [_decision_of(*facts) for facts in zip(choice.sources, taken, trained, times, strict=True)]
    if choice.fraction:
        share = f"{100 * choice.fraction:g} % of the different training rows, by a hash of their content"
        count = sum(int(mask.sum()) for mask in held_out)
        decisions.append(("data.eval.rows", count, f"{share} (seed {choice.fraction_seed}); equal rows stay together"))
    sizes = tuple(np.asarray(source.sizes, np.int64) for source in taken)
    return Chosen(sizes, tuple(times), tuple(held_out), going.dropped, tuple(decisions))


def _hold_out(fraction: float, sources: Sequence[_Source]) -> None:
    """Hold out rows with the lowest of all different lots: the fraction of them, rounded to the nearest number, at
    least one and not all. Rows that are added later move the bound, and thus a few rows, only slightly.

    Raises:
        DataError: all rows are equal.
    """
    lots = [np.array(source.lots, np.uint64) for source in sources]
    different = np.unique(np.concatenate(lots))
    if len(different) < 2:
        raise DataError(
            "data.eval.fraction", "no two training rows differ, so none can be held out", action="give more rows"
        )
    count = min(max(1, int(fraction * len(different) + 0.5)), len(different) - 1)
    for source, drawn in zip(sources, lots, strict=True):
        kinds = np.frombuffer(source.kinds, np.uint8)  # a view of the bytes, no copy
        kinds[kinds == _DRAWN] = np.where(drawn < different[count], _EVAL, _TRAIN)


MOST = 2**31
"""Largest number of rows in an epoch; their order alone takes eight bytes per row."""


def mixed(choice: Choice, available: Sequence[NDArray[np.uint32]]) -> list[NDArray[np.uint32]]:
    """The number of times that an epoch takes each row: the same for all rows of a source, and once more for some rows,
    drawn with the seed.

    Args:
        available: by source, 1 for each row that may be taken.

    Raises:
        DataError: a source would give no row, or an epoch would exceed the largest number of rows.
    """
    counts = [int(rows.sum()) for rows in available]
    if (
        max((source.weight for source in choice.sources), default=0) * sum(counts) > MOST
        or (choice.mix_rows or 0) > MOST
    ):
        raise DataError(
            "data.mix", f"an epoch would take more than {MOST:,} rows", action="lower the weights, or data.mix.rows"
        )
    taken = epoch_rows(choice, counts)
    times = []
    for index, (rows, count, wanted) in enumerate(zip(available, counts, taken, strict=True)):
        source = choice.sources[index]
        if count and not wanted:
            raise DataError(
                source.setting, f"of its {count:,} rows an epoch would take none",
                action=f"raise {source.setting}.weight or data.mix.rows",
            )  # fmt: skip
        whole, rest = divmod(wanted, count) if count else (0, 0)
        result = rows * np.uint32(whole)
        places = np.flatnonzero(rows)
        drawn = np.random.default_rng([choice.mix_seed, index]).choice(len(places), rest, replace=False)
        result[places[drawn]] += 1
        times.append(result)
    return times


def epoch_rows(choice: Choice, counts: Sequence[int]) -> list[int]:
    """Number of rows of each source in an epoch, proportional to weight * n^(1/T); without `mix_rows` the largest
    source is taken `weight` times."""
    power = 0.0 if choice.temperature is None else 1 / choice.temperature
    largest = max(counts, default=0)
    shares = [
        source.weight * largest * (count / largest) ** power if count else 0.0
        for source, count in zip(choice.sources, counts, strict=True)
    ]
    if choice.mix_rows is None:
        return [int(share + 0.5) for share in shares]
    scaled = [choice.mix_rows * share / sum(shares) for share in shares]
    whole = [int(share) for share in scaled]
    by_rest = sorted(range(len(scaled)), key=lambda i: (whole[i] - scaled[i], i))
    for i in by_rest[: choice.mix_rows - sum(whole)]:
        whole[i] += 1
    return whole


def _takes_none(choice: SourceChoice, rows: int) -> DataError:
    text = choice.slice.text if choice.slice is not None else "[:]"
    of = "its only row" if rows == 1 else f"its {rows:,} rows"
    return DataError(choice.setting, f"the slice {text} takes none of {of}", action="change the slice")


def _near(choice: Choice) -> NearRows | None:
    if choice.deduplicate != "near":
        return None
    try:
        return NearRows(choice.near_threshold)
    except ImportError as error:
        raise RecipeError(
            "data.deduplicate", f"'near' needs the package datasketch, which cannot be imported ({error})",
            action=f"{install_command('finetooth-core[near]')}, or set data.deduplicate: exact",
        ) from error  # fmt: skip


def _wanted(choice: SourceChoice, size: int | None) -> range:
    """Positions of the rows in the slice."""
    wanted = (choice.slice or Slice("[:]", None, None)).of(size)
    return wanted if choice.max_rows is None else wanted[: choice.max_rows]


def _size(index: int, sources: Sequence[PickedSource]) -> int:
    return sum(1 for work in work_of_source(index, sources[index]) for _ in rows_of(sources, work))


def _decision_of(choice: SourceChoice, source: _Source, trained: NDArray[np.uint32], times: NDArray[np.uint32]) -> Any:
    """The plan's decision about a source: setting, rows per epoch, and reason."""
    available, taken = int(trained.sum()), int(times.sum())
    sliced = len(source.kinds) - source.count(_LEFT) + source.repeated + source.near
    most = f"max_rows {choice.max_rows:,}" if choice.max_rows else ""
    limits = [choice.slice.text if choice.slice is not None else "", most]
    of = "" if source.size is None else f" of {source.size:,}"
    parts = [f"{' and '.join(filter(None, limits))} {'take' if all(limits) else 'takes'} {sliced:,}{of} rows"]
    parts = parts if any(limits) else [f"{sliced:,} rows"]
    for count, how in ((source.repeated, ""), (source.near, "nearly ")):
        parts += [f"{count:,} {how}{'repeats' if count == 1 else 'repeat'} an earlier one"] if count else []
    parts += [f"{source.count(_EVAL):,} held out"] if source.count(_EVAL) else []
    if taken != available:
        parts.append(f"the {available:,} left are taken {taken / available:.3g} times an epoch")
    return f"{choice.setting}.rows", taken, "; ".join(parts)
