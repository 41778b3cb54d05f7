"""What prepared rows are like as a whole: lengths, repetitions, padding, and whose words train."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Conversation
from finetooth_hooks.tally import SHOWN

if TYPE_CHECKING:
    from finetooth_hooks.datum import Datum
    from finetooth_hooks.token_rows import TokenRows

    from finetooth_core.context import RunContext

Lengths = np.ndarray[Any, np.dtype[np.int64]]
Digests = Sequence[tuple[bytes, str]]
"""Digest and id of each row, in order."""
LayOut = Callable[[Sequence[Sequence[int]]], float]

BINS = 10
"""Bars of the histogram."""
_TAKEN_AGAIN = re.compile(r"(.*)~[0-9]+((?:#[0-9]+)?)", re.DOTALL)
"""Id of a row that an epoch takes once more."""
BATCHES = 1000
"""Batches that are laid out as the backend does."""
LOOKED_AT = 2000
"""Rows that are rendered once more to tell roles apart."""


@dataclass(frozen=True)
class Repeats:
    """Rows with the same tokens as an earlier one.

    Attributes:
        count: all of them.
        first: some, each with the row it repeats.
    """

    count: int = 0
    first: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Survey:
    """The rows of one split that became data.

    Attributes:
        split: `train` or `eval`.
        rows: how many.
        quantiles: tokens of the shortest, the median, the 95th percentile and the longest row.
        histogram: (from, to, rows) for equal ranges of length.
        repeats: rows that are there twice.
        padded: share of positions that would be padding if every batch were padded to its longest row.
        budgeted: the same for micro-batches by `train.micro_batch_tokens`, rows of a batch sorted by length.
        laid_out: the same as the backend will lay batches out; None if it does not say.
        roles: trained tokens by who says them, of the first `looked_at` rows; empty where rows are no conversations.
        looked_at: rows that were.
        images: in how many rows there are images, how many there are, and how many tokens they take.
    """

    split: str
    rows: int
    quantiles: tuple[int, int, int, int]
    histogram: tuple[tuple[int, int, int], ...]
    repeats: Repeats
    padded: float
    budgeted: float
    roles: dict[str, int] = field(default_factory=dict)
    looked_at: int = 0
    laid_out: float | None = None
    images: tuple[int, int, int] = (0, 0, 0)


def prepared(context: RunContext) -> dict[str, TokenRows]:
    """The rows of every split that the method or an evaluator has prepared, as it did: small data are made once more,
    large ones are found in the cache."""
    return {split: context.prepare(split, *how).data for split, how in context.prepared_as.items()}


def survey(
    context: RunContext,
    split: str,
    rows: TokenRows,
    digests: Digests,
    batch_size: int,
    budget: int,
    lay_out: LayOut | None = None,
) -> Survey:
    """Look at the rows of a split.

    Args:
        digests: of these rows.
        budget: positions of a micro-batch.
        lay_out: share of padding in batches, as the backend lays them out (`BackendPlan.padding`).
    """
    lengths = rows.lengths
    roles, looked_at = _roles(context, split)
    low, median, high, most = (int(q) for q in np.quantile(lengths, [0, 0.5, 0.95, 1.0], method="higher"))
    return Survey(
        split,
        len(rows),
        (low, median, high, most),
        histogram(lengths),
        repeats(digests),
        padding(lengths, batch_size, None),
        padding(lengths, batch_size, budget),
        roles,
        looked_at,
        None if lay_out is None else lay_out(_batches(lengths, batch_size)),
        _images(rows),
    )


def _images(rows: TokenRows) -> tuple[int, int, int]:
    found = list(rows.images)
    lengths = [image.length for of_row in found for image in of_row]
    return len(found), len(lengths), sum(lengths)


def shared(digests: Mapping[str, Digests]) -> Repeats:
    """Held-out rows that are in training too, by the digests of each split."""
    seen = dict(digests.get("train", ()))
    found = [(id_, seen[digest]) for digest, id_ in digests.get("eval", ()) if digest in seen]
    return Repeats(len(found), tuple(found[:SHOWN]))


def histogram(lengths: Lengths) -> tuple[tuple[int, int, int], ...]:
    """Rows by length, in at most `BINS` ranges of whole numbers."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // BINS))
    counts = Counter(((lengths - low) // width).tolist())
    return tuple((low + i * width, min(low + (i + 1) * width - 1, high), counts[i]) for i in range(max(counts) + 1))


def padding(lengths: Lengths, batch_size: int, budget: int | None) -> float:
    """Share of positions that are padding, batch by batch in the order of the rows.

    Args:
        budget: positions of a micro-batch; rows go into them by length, shortest first. None: a batch is one rectangle.
    """
    positions = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size] - 1
        positions += len(batch) * int(batch.max()) if budget is None else _within(sorted(batch.tolist()), budget)
    used = int(lengths.sum()) - len(lengths)
    return 1 - used / positions if positions else 0.0


def _batches(lengths: Lengths, batch_size: int) -> list[list[int]]:
    """Positions of the rows of each batch, in their order; of many batches `BATCHES`, evenly spread."""
    starts = range(0, len(lengths), batch_size)
    taken = starts[:: -(-len(starts) // BATCHES)]
    return [(lengths[start : start + batch_size] - 1).tolist() for start in taken]


def _within(ascending: Sequence[int], budget: int) -> int:
    """Positions of rows cut into rectangles within a budget."""
    positions, rows = 0, 0
    for i, length in enumerate(ascending):
        if rows and (rows + 1) * length > budget:
            positions += rows * ascending[i - 1]
            rows = 0
        rows += 1
    return positions + rows * ascending[-1]


def repeats(digests: Digests) -> Repeats:
    """Rows with the same tokens, but for those that mixing takes once more."""
    ids = {id_ for _, id_ in digests}
    seen: dict[bytes, str] = {}
    found: list[tuple[str, str]] = []
    count = 0
    for digest, id_ in digests:
        if _TAKEN_AGAIN.fullmatch(id_) and _TAKEN_AGAIN.sub(r"\1\2", id_) in ids:
            continue
        earlier = seen.setdefault(digest, id_)
        if earlier != id_:
            count += 1
            found += [(id_, earlier)] if len(found) < SHOWN else []
    return Repeats(count, tuple(found))


def digests_of(rows: TokenRows) -> Digests:
    """What tells rows apart by their tokens and images, with their ids."""
    return [(_digest(datum), datum.id) for datum in rows]


def _digest(datum: Datum) -> bytes:
    content = np.append(datum.placeholder_tokens, datum.targets[-1:]).astype(np.int64).tobytes()
    digest = hashlib.blake2b(content, digest_size=16)
    for _, image in datum.images:
        digest.update(image.data)
    return digest.digest()


def _roles(context: RunContext, split: str) -> tuple[dict[str, int], int]:
    """Trained tokens by role, of the first rows."""
    rendering, _ = context.prepared_as[split]
    render = rendering.load(context)
    found: Counter[str] = Counter()
    looked_at = 0
    for _, example in islice(context.examples(split).rows, LOOKED_AT):
        if not isinstance(example, Conversation):
            continue
        try:
            rendered = render(example)
        except DataError:
            continue
        looked_at += 1
        if len(rendered.spans) == len(example.messages):
            for message, (start, stop) in zip(example.messages, rendered.spans, strict=True):
                found[message.role] += sum(1 for weight in rendered.weights[max(start, 1) : stop] if weight)
    return dict(found), looked_at
