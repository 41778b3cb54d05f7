"""Rendered rows in a compact form, in memory or in a memory-mapped file.

Rows are in portions of a few flat arrays, so that a million rows need neither a million Python objects nor their
memory: a row becomes a `Datum` when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.data.examples import RenderedMedium
from finetooth_hooks.data.preparation import PreparedRows
from finetooth_toolbox.messages import media as row_media
from numpy.typing import NDArray

from finetooth_rows.storage.lazy import LazySequence

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenPortion:
    """Consecutive rows: R rows with T tokens together.

    Loss weights are mostly long runs of 0 and of 1, so they are stored as runs; a run never crosses the end of a row.

    Attributes:
        ids: R row ids.
        starts: (R + 1,) row r has the tokens `starts[r]` to `starts[r + 1]`.
        tokens: (T,) token ids.
        run_starts: (R + 1,) row r has the runs `run_starts[r]` to `run_starts[r + 1]`.
        run_lengths: number of tokens of each run.
        run_weights: their weight, float32.
        media: R, the media of each row as `row_media.pack` writes them; empty: no row has any.
        about: R, the scalars and the group of each row as `pack_about` writes them; empty: no row has any.
    """

    ids: Sequence[str]
    starts: Int64Array
    tokens: Int32Array
    run_starts: Int64Array
    run_lengths: Int32Array
    run_weights: NDArray[np.float32]
    media: Sequence[bytes] = ()
    about: Sequence[bytes] = ()

    @classmethod
    def pack(
        cls,
        ids: Sequence[str],
        lengths: Sequence[int],
        tokens: Sequence[int],
        weights: Sequence[float],
        media: Sequence[bytes] = (),
        about: Sequence[bytes] = (),
    ) -> TokenPortion:
        """From rows laid end to end.

        Args:
            lengths: tokens of each row, at least 1.
            tokens: of all rows.
            weights: of all tokens.
            media: of each row, packed.
            about: of each row, packed.
        """
        starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.asarray(lengths, np.int64), out=starts[1:])
        flat = np.asarray(weights, np.float32)
        begins = np.zeros(len(flat), np.bool_)
        begins[1:] = flat[1:] != flat[:-1]
        begins[starts[:-1]] = True
        first = np.flatnonzero(begins)
        return cls(
            ids=tuple(ids),
            starts=starts,
            tokens=np.asarray(tokens, np.int32),
            run_starts=np.searchsorted(first, starts).astype(np.int64),
            run_lengths=np.diff(np.append(first, len(flat))).astype(np.int32),
            run_weights=flat[first],
            media=tuple(media) if any(media) else (),
            about=tuple(about) if any(about) else (),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All arrays, in the order of the fields; without ids, media and `about`."""
        return (self.starts, self.tokens, self.run_starts, self.run_lengths, self.run_weights)


class TokenRows(LazySequence[Datum], PreparedRows):
    """Rows as data, in the order of their source; each is made when it is read.

    Args:
        portions: the rows; the sequence may read them from a file.
        sizes: rows and tokens of each portion, to know them without reading; default: counted from the portions.
    """

    noun = "row"

    def __init__(self, portions: Sequence[TokenPortion], sizes: Iterable[tuple[int, int]] | None = None) -> None:
        known = [(len(p), len(p.tokens)) for p in portions] if sizes is None else list(sizes)
        table = np.asarray(known, np.int64).reshape(-1, 2)
        self._portions = portions
        self._row_ends: Int64Array = np.cumsum(table[:, 0])
        self._token_ends: Int64Array = np.cumsum(table[:, 1])

    def __len__(self) -> int:
        return int(self._row_ends[-1]) if len(self._row_ends) else 0

    @property
    def token_count(self) -> int:
        """Tokens of all rows."""
        return int(self._token_ends[-1]) if len(self._token_ends) else 0

    @property
    def lengths(self) -> Int64Array:
        """Tokens of each row, (R,)."""
        by_portion = [np.diff(portion.starts) for portion in self._portions]
        return np.concatenate(by_portion).astype(np.int64) if by_portion else np.zeros(0, np.int64)

    @property
    def positions(self) -> Int64Array:
        """Positions of each row, (R,): its tokens except the last, which is only predicted."""
        return self.lengths - 1

    def make(self, place: int) -> Datum:
        number = int(np.searchsorted(self._row_ends, place, side="right"))
        portion = self._portions[number]
        row = place - (int(self._row_ends[number - 1]) if number else 0)
        media = row_media.unpack(portion.media[row]) if portion.media else ()
        scalars, group = unpack_about(portion.about[row]) if portion.about else ({}, None)
        runs = slice(int(portion.run_starts[row]), int(portion.run_starts[row + 1]))
        return Datum.from_tokens(
            portion.tokens[portion.starts[row] : portion.starts[row + 1]],
            np.repeat(portion.run_weights[runs], portion.run_lengths[runs]),
            scalars=scalars,
            group=group,
            id=portion.ids[row],
            media=row_media.chunks(media, portion.ids[row]),
        )

    @property
    def media(self) -> Iterator[tuple[RenderedMedium, ...]]:
        """The media of each row that has any, without reading their files."""
        for portion in self._portions:
            yield from (row_media.unpack(content) for content in portion.media if content)

    def span(self, begin: int, end: int) -> Int64Array:
        """Tokens `begin` to `end` of all rows laid end to end, (end - begin,), or fewer at their end."""
        parts: list[Int32Array] = []
        end = min(end, self.token_count)
        number = int(np.searchsorted(self._token_ends, begin, side="right"))
        while begin < end:
            first = int(self._token_ends[number - 1]) if number else 0
            stop = min(end, int(self._token_ends[number]))
            parts.append(self._portions[number].tokens[begin - first : stop - first])
            begin, number = stop, number + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def begins(self, begin: int, end: int) -> Int64Array:
        """Beginnings of rows among the tokens `begin` to `end` of all rows laid end to end, relative to `begin`."""
        parts: list[Int64Array] = []
        number = int(np.searchsorted(self._token_ends, begin, side="right"))
        end = min(end, self.token_count)
        while number < len(self._token_ends):
            first = int(self._token_ends[number - 1]) if number else 0
            if first >= end:
                break
            starts = self._portions[number].starts[:-1] + first
            low, high = np.searchsorted(starts, [begin, end])
            parts.append(starts[low:high] - begin)
            number += 1
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def place(self, position: int) -> tuple[str, int]:
        """Finds the row with token number `position` of all rows laid end to end.

        Returns:
            The row's id, and the index of the token in it.
        """
        number = int(np.searchsorted(self._token_ends, position, side="right"))
        portion = self._portions[number]
        within = position - (int(self._token_ends[number - 1]) if number else 0)
        row = int(np.searchsorted(portion.starts, within, side="right")) - 1
        return portion.ids[row], within - int(portion.starts[row])


def positions_of(data: Sequence[Datum]) -> Int64Array:
    """Positions of each datum, (len(data),), without making the data if they are rows or windows with known lengths."""
    known: Int64Array | None = getattr(data, "positions", None)
    return np.fromiter(map(len, data), np.int64, len(data)) if known is None else known


def pack_about(scalars: Mapping[str, float], group: str | None) -> bytes:
    """Scalars and group of a row as bytes; empty if it has neither."""
    return json.dumps([dict(scalars), group]).encode() if scalars or group is not None else b""


def unpack_about(content: bytes) -> tuple[dict[str, float], str | None]:
    """From `pack_about`."""
    if not content:
        return {}, None
    scalars, group = json.loads(content)
    return scalars, group
