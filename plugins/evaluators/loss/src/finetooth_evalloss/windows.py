"""Documents in windows, each document for itself."""

from __future__ import annotations

import numpy as np
from finetooth_hooks import DataError, DataReport, Datum
from finetooth_hooks.data.preparation import PreparedRows
from finetooth_hooks.data.problems import SHOWN
from finetooth_rows.storage.lazy import LazySequence
from numpy.typing import NDArray

TOO_SHORT = "too short to predict a token"


class Windows(LazySequence[Datum]):
    """Each document cut in windows of `length` positions, each made when it is read.

    Neighbours share one token, the last a window predicts and the first the next one reads, so each token of a document
    but the first is predicted once. A window is named after its document and its first token in it: `corpus.txt@1024`.

    Raises:
        DataError: no document has two tokens.
    """

    noun = "window"

    def __init__(self, documents: PreparedRows, length: int) -> None:
        self._documents, self._length = documents, length
        sizes = documents.lengths
        self._begins = np.concatenate(([0], np.cumsum(sizes)))
        self._positions = np.maximum(sizes - 1, 0)
        self._ends = np.cumsum(-(-self._positions // length))
        if not len(self):
            raise DataError("data.eval", "its texts have no token to predict", action="give longer texts")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions of each window, (W,)."""
        windows = -(-self._positions // self._length)
        counts = np.full(len(self), self._length, np.int64)
        full = windows > 0
        counts[self._ends[full] - 1] = (self._positions - (windows - 1) * self._length)[full]
        return counts

    def make(self, place: int) -> Datum:
        document = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[document - 1]) if document else 0
        offset = (place - before) * self._length
        begin, end = int(self._begins[document]), int(self._begins[document + 1])
        tokens = self._documents.span(begin + offset, min(begin + offset + self._length + 1, end))
        return Datum.from_tokens(tokens, id=f"{self._id(document)}@{offset}")

    def report(self, documents: DataReport) -> DataReport:
        """The report on the documents, counted in windows.

        Args:
            documents: the report on them as rows.
        """
        short = np.flatnonzero(self._positions == 0)
        longest = np.minimum(self._positions, self._length)
        positions = int(self._positions.sum())
        short_ids = {TOO_SHORT: tuple(map(self._id, short[:SHOWN]))} if len(short) else {}
        return DataReport(
            split=documents.split,
            rows=documents.rows,
            used=len(self),
            dropped={**documents.dropped, **({TOO_SHORT: len(short)} if len(short) else {})},
            dropped_ids={**documents.dropped_ids, **short_ids},
            tokens=positions,
            trained_tokens=positions,
            longest=int(longest.max()),
            longest_id=f"{self._id(int(longest.argmax()))}@0",
            notes=documents.notes,
            examples=documents.examples,
            settings=documents.settings,
            settled=documents.settled,
        )

    def _id(self, document: int) -> str:
        return self._documents.place(int(self._begins[document]))[0]
