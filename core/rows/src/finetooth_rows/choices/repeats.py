"""Finds rows with equal tokens, in memory of a few bytes per row."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.data.problems import SHOWN

Digests = Sequence[tuple[bytes, str]]
"""Digest and id of each row, in order."""

_TAKEN_AGAIN = re.compile(r"(.*)~[0-9]+((?:#[0-9]+)?)", re.DOTALL)
"""Id of a repetition of a row in an epoch."""
_PIECE = re.compile(r"(.*)#([0-9]+)", re.DOTALL)
"""Id of a piece of a row that was split."""


@dataclass(frozen=True)
class Repeats:
    """Rows with the same tokens as an earlier one.

    Attributes:
        count: number of all of them.
        first: some, each with the row it repeats.
    """

    count: int = 0
    first: tuple[tuple[str, str], ...] = ()


def digests_of(rows: Iterable[Datum], cut: int | None = None) -> Digests:
    """Digests of rows by tokens, images and sounds, with their ids. Data of one group are one row.

    Args:
        cut: positions at which rows were split; None if no row was. The pieces of a row count as one row.
    """
    digests: list[tuple[bytes, str]] = []
    for id_, pieces in _whole_rows(rows, cut):
        digest = hashlib.blake2b(digest_size=16)
        for number, datum in pieces:
            digest.update(f"{number}:{len(datum)}\0".encode())
            digest.update(np.append(datum.placeholder_tokens, datum.targets[-1:]).astype(np.int64).tobytes())
            for _, medium in datum.media:
                digest.update(medium.data)
        digests.append((digest.digest(), id_))
    return digests


def _whole_rows(rows: Iterable[Datum], cut: int | None) -> Iterator[tuple[str, list[tuple[int, Datum]]]]:
    """Id of each row with its data, each with its piece's number, or 0 for a single piece."""
    id_, pieces = "", list[tuple[int, Datum]]()
    for datum in rows:
        if datum.group is not None:
            if pieces and datum.group != id_:
                yield _row(id_, pieces)
                pieces = []
            id_ = datum.group
            pieces.append((len(pieces) + 1, datum))
            continue
        named = _PIECE.fullmatch(datum.id) if cut is not None else None
        own, number = (named[1], int(named[2])) if named is not None else (datum.id, 0)
        goes_on = pieces and own == id_ and number > pieces[-1][0] > 0 and len(pieces[-1][1]) == cut
        if pieces and not goes_on:
            yield _row(id_, pieces)
            pieces = []
        id_ = own
        pieces.append((number, datum))
    if pieces:
        yield _row(id_, pieces)


def _row(id_: str, pieces: list[tuple[int, Datum]]) -> tuple[str, list[tuple[int, Datum]]]:
    """The row of some pieces. A single piece keeps its own id: its id only looks like a piece's, or no other piece
    trains."""
    return (id_, pieces) if len(pieces) > 1 else (pieces[0][1].id, [(0, pieces[0][1])])


def repeats(digests: Digests) -> Repeats:
    """Rows with the same tokens as an earlier row, without repetitions from mixing."""
    ids = {id_ for _, id_ in digests}
    seen: dict[bytes, str] = {}
    pairs: list[tuple[str, str]] = []
    count = 0
    for digest, id_ in digests:
        again = _TAKEN_AGAIN.fullmatch(id_)
        if again is not None and again[1] + again[2] in ids:
            continue
        earlier = seen.setdefault(digest, id_)
        if earlier != id_:
            count += 1
            pairs += [(id_, earlier)] if len(pairs) < SHOWN else []
    return Repeats(count, tuple(pairs))


def shared(digests: Mapping[str, Digests]) -> Repeats:
    """Held-out rows that are in training too, by the digests of each split."""
    seen: dict[bytes, str] = {}
    for digest, id_ in digests.get("train", ()):
        seen.setdefault(digest, id_)
    pairs = [(id_, seen[digest]) for digest, id_ in digests.get("eval", ()) if digest in seen]
    return Repeats(len(pairs), tuple(pairs[:SHOWN]))
