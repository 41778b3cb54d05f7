"""Streams documents: makes windows in bounded memory, in an order that a resumed run can continue.

Windows are cut as in `windows`, and collected into blocks of a fixed number. Each block is shuffled with the run's
seed, the pass and the block's number, and trained before the next one. So the cursor of a run is small and exact: the
start of its block (a row and a token in it) and the number of the block's trained windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from finetooth_hooks import DataError, Datum, Rendered
from numpy.typing import NDArray

from finetooth_pretrain.windows import window

Rows = Iterator[tuple[str, Rendered | DataError]]


@dataclass(frozen=True)
class Shape:
    """The settings that determine the windows and their order.

    Attributes:
        length: positions of a window.
        block: number of windows that are shuffled together; 1 keeps the order.
        batch: windows in a step.
        seed: of the shuffling.
        isolate: windows mark the beginnings of documents.
    """

    length: int
    block: int
    batch: int
    seed: int
    isolate: bool


@dataclass(frozen=True)
class Cursor:
    """A place in the stream; plain numbers, so that it can be saved.

    Attributes:
        passes: number of completed passes over the data.
        block: number of completed blocks of this pass.
        row, offset: start of the present block: number of rows before it, and the token in its first row.
        taken: number of its trained windows.
        left_out: rows left out before the block, in all passes.
        skipped: the same in this pass.
        a_pass: windows in a pass; 0 before the end of the first.
        digest: of the tokens of the present block; empty before it is filled.
    """

    passes: int = 0
    block: int = 0
    row: int = 0
    offset: int = 0
    taken: int = 0
    left_out: int = 0
    skipped: int = 0
    a_pass: int = 0
    digest: str = ""

    def epoch(self, size: int) -> float:
        """Completed passes, with a fraction once the length of a pass is known."""
        return self.passes + ((self.block * size + self.taken) / self.a_pass if self.a_pass else 0.0)

    def as_state(self) -> dict[str, Any]:
        """JSON-able; `Cursor(**state)` is the same again."""
        return asdict(self)


@dataclass(frozen=True)
class Pass:
    """Counts of one pass over the data."""

    documents: int
    windows: int
    last: int


@dataclass(frozen=True)
class _Window:
    """A window with its start: the number of rows before it, the token in its first row, and the left-out rows before
    it."""

    datum: Datum
    row: int
    offset: int
    skipped: int


@dataclass(frozen=True)
class _Piece:
    """Tokens of one row, from token `offset` on."""

    row: int
    id: str
    offset: int
    skipped: int
    tokens: NDArray[np.int64]

    def after(self, count: int) -> _Piece:
        return replace(self, offset=self.offset + count, tokens=self.tokens[count:])


class DocumentStream:
    """Batches of windows, pass after pass.

    Args:
        open: reads the rows again, from a given number.
        shape: of windows and batches.
        cursor: the start.
        left_out: called for every unusable row, with their number so far.
        passed: called after every pass over the data.
    """

    def __init__(
        self,
        open: Callable[[int], Rows],
        shape: Shape,
        *,
        cursor: Cursor | None = None,
        left_out: Callable[[DataError, int], None],
        passed: Callable[[Pass], None],
    ) -> None:
        self._open, self._shape = open, shape
        self._left_out, self._passed = left_out, passed
        self._start = cursor or Cursor()

    def batches(self) -> Iterator[tuple[list[Datum], Cursor]]:
        """The data of each step, and the cursor after them. The last batch of a pass may be smaller; passes repeat
        endlessly.

        Raises:
            DataError: a pass has no token to predict, or the data differ from those of the cursor.
        """
        cursor = self._start
        while True:
            for data, after in self._one_pass(cursor):
                cursor = after
                yield data, after

    def _one_pass(self, cursor: Cursor) -> Iterator[tuple[list[Datum], Cursor]]:
        size = self._shape.batch
        data: list[Datum] = []
        for datum, after, last in self._ordered(cursor):
            data.append(datum)
            if len(data) == size or last:
                yield data, self._next_pass(after) if last else after
                data = []

    def _next_pass(self, cursor: Cursor) -> Cursor:
        windows = cursor.block * self._shape.block + cursor.taken
        return Cursor(passes=cursor.passes + 1, left_out=self._seen, a_pass=windows)

    def _ordered(self, cursor: Cursor) -> Iterator[tuple[Datum, Cursor, bool]]:
        """Windows in training order, with the cursor after each, and whether it is the last of the pass."""
        self._seen = cursor.left_out
        windows = self._windows(cursor)
        following = self._fill(windows)
        if not following:
            raise DataError(
                "data.train", "its documents have fewer than 2 tokens together: nothing to predict",
                action="give it more text",
            )  # fmt: skip
        while following:
            block, following = following, []
            digest = _digest(block)
            if cursor.digest not in ("", digest):
                raise DataError(
                    "cursor",
                    f"the data have changed from row {cursor.row + 1} on since the run was saved",
                    action="resume with the data, tokenizer and settings of the saved run",
                )
            cursor = replace(cursor, digest=digest)
            order = np.random.default_rng([self._shape.seed, cursor.passes, cursor.block]).permutation(len(block))
            for at in range(cursor.taken, len(block)):
                if at == len(block) - 1:
                    following = self._fill(windows)
                cursor = replace(cursor, taken=at + 1)
                last = at == len(block) - 1 and not following
                if at == len(block) - 1 and following:
                    first = following[0]
                    before = cursor.left_out - cursor.skipped
                    cursor = replace(
                        cursor, block=cursor.block + 1, row=first.row, offset=first.offset, taken=0,
                        left_out=before + first.skipped, skipped=first.skipped, digest=_digest(following),
                    )  # fmt: skip
                yield block[int(order[at])].datum, cursor, last

    def _fill(self, windows: Iterator[_Window]) -> list[_Window]:
        return [window for _, window in zip(range(self._shape.block), windows, strict=False)]

    def _windows(self, cursor: Cursor) -> Iterator[_Window]:
        """Windows of a pass, from the cursor's block on."""
        length = self._shape.length
        pending: list[_Piece] = []
        buffered, skipped, row, count, last = 0, cursor.skipped, cursor.row, cursor.block * self._shape.block, 0
        for row, (id_, rendered) in enumerate(self._open(cursor.row), start=cursor.row):
            if isinstance(rendered, DataError):
                skipped += 1
                self._seen += 1
                self._left_out(rendered, self._seen)
                continue
            begin = cursor.offset if row == cursor.row else 0
            tokens = np.asarray(rendered.tokens[begin:], np.int64)
            pending.append(_Piece(row, id_, begin, skipped, tokens))
            buffered += len(tokens)
            while buffered > length:
                count, last = count + 1, length
                yield self._cut(pending, length)
                buffered -= length
        if buffered > 1:
            count, last = count + 1, buffered - 1
            yield self._cut(pending, buffered - 1)
        if count:
            self._passed(Pass(row + 1 - skipped, count, last))

    def _cut(self, pending: list[_Piece], length: int) -> _Window:
        """The next `length` positions. Their last predicted token stays, as the first input of the next window."""
        first, parts, need = pending[0], [], length + 1
        while True:
            piece = pending[0]
            parts.append(piece.tokens[:need])
            need -= len(parts[-1])
            if need == 0:
                pending[0] = piece.after(len(parts[-1]) - 1)
                break
            del pending[0]
        begins = np.cumsum([0, *(len(part) for part in parts)])[:-1]
        datum = window(np.concatenate(parts), begins if self._shape.isolate else None, f"{first.id}@{first.offset}")
        return _Window(datum, first.row, first.offset, first.skipped)


def _digest(block: list[_Window]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in block:
        digest.update(row.datum.tokens.astype("<i4").tobytes())
    return digest.hexdigest()
