"""Pairs for the engine: two data of one group, the chosen one first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from finetooth_hooks import DataReport, Datum
from finetooth_rows.storage.lazy import LazySequence

from finetooth_preference.precomputed import ReferenceLogprobs


class PairData(LazySequence[tuple[Datum, Datum]]):
    """Pairs in the order of their rows.

    The mask of both marks the targets of the answer. The field `weights`, for the likelihood, is 0 in the rejected one.

    Args:
        rows: prepared data, two per pair.
    """

    noun = "pair"

    def __init__(self, rows: Sequence[Datum]) -> None:
        self.rows = rows
        self.known: ReferenceLogprobs | None = None

    def __len__(self) -> int:
        return len(self.rows) // 2

    def make(self, place: int) -> tuple[Datum, Datum]:
        chosen, rejected = self.rows[2 * place], self.rows[2 * place + 1]
        if self.known is not None:
            chosen, rejected = self.known.add(2 * place, chosen), self.known.add(2 * place + 1, rejected)
        nothing = np.zeros(len(rejected), dtype=np.float32)
        return chosen, replace(rejected, mask=rejected.mask, fields={**rejected.fields, "weights": nothing})

    def flat(self) -> list[Datum]:
        """Both answers of every pair."""
        return [datum for pair in self for datum in pair]


def report_of(report: DataReport, pairs: int) -> DataReport:
    """The report with pairs instead of answers as data, since a batch counts pairs."""
    return replace(report, used=pairs, length_deviation=2**0.5 * report.length_deviation)
