"""Random numbers of a step's data, the same for every layout: dropout and noise are functions of these keys.

A number is drawn for a seed, an optimizer step, a datum (its place among the data of the step), a position in the
datum, a site (the module that draws) and a column of what it draws for. It depends on nothing else: not on the
micro-batch, the rows that stand next to the datum, or the rank. Each is a hash of its keys, so any library computes the
same bits; this module is the reference, in NumPy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from finetooth_hooks import Datum
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""Keys: two words of 32 bits in the last dimension."""

FIRST, SECOND = 0x85EBCA6B, 0xC2B2AE35
"""Multipliers of the finalizer of MurmurHash3 (Appleby, 2011)."""
GOLDEN = 0x9E3779B9
"""2^32 divided by the golden ratio; sets columns apart."""


def places_of(data: Sequence[Datum], before: int = 0) -> tuple[int, ...]:
    """The place of each datum among the data of its step.

    Args:
        before: data of the step that came with earlier calls; those without a place of their own count on from it.
    """
    return tuple(before + at if datum.place is None else datum.place for at, datum in enumerate(data))


def words_of(*keys: object) -> tuple[int, int]:
    """Two words from any keys; the same on every machine."""
    whole = _hash(keys)
    return whole & 0xFFFFFFFF, whole >> 32


def stream_key(*keys: object) -> int:
    """A 63-bit seed from any keys; the same keys give the same seed on every machine."""
    return _hash(keys) >> 1


def _hash(keys: Sequence[object]) -> int:
    text = "\x1f".join(str(key) for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def position_keys(seed: int, step: int, place: int, length: int) -> Words:
    """(N, 2) a key for each of the first `length` positions of a datum."""
    first, second = words_of("datum", seed, step, place)
    at = np.arange(length, dtype=np.uint32)
    low = mixed(at * np.uint32(GOLDEN) + np.uint32(first))
    return np.stack([low, mixed(low ^ np.uint32(second))], axis=-1)


def mixed(words: Any) -> Any:
    """The finalizer of MurmurHash3: every bit of a word reaches every bit of the result.

    Args:
        words: unsigned, of 32 bits, of any library whose products wrap around.
    """
    words = (words ^ (words >> 16)) * FIRST
    words = (words ^ (words >> 13)) * SECOND
    return words ^ (words >> 16)


def uniform_words(keys: Words, site: str, columns: int) -> Words:
    """(..., columns) uniform words.

    Args:
        keys: (..., 2) of positions.
        site: the module that draws.
    """
    rows, at = halves(keys, site, columns)
    return np.asarray(mixed(rows[..., None] ^ at))


def halves(keys: Words, site: str, columns: int) -> tuple[Words, Words]:
    """Words of rows (...,) and of columns: `drawn` mixes each pair of them."""
    first, second = words_of("site", site)
    rows = mixed(mixed(keys[..., 0] ^ np.uint32(first)) + keys[..., 1] ^ np.uint32(second))
    return rows, mixed(np.arange(columns, dtype=np.uint32) * np.uint32(GOLDEN) + np.uint32(second))


def keep_mask(words: Words, dropped: float) -> NDArray[np.bool_]:
    """Which numbers stay where a share `dropped` of them becomes 0: those whose word, as a signed number, is at least
    `threshold(dropped)`."""
    return np.asarray(words.view(np.int32) >= np.int32(threshold(dropped)))


def threshold(dropped: float) -> int:
    """As a signed number of 32 bits: a share `dropped` of all words lies below it."""
    return min(round(dropped * 2**32), 2**32 - 1) - 2**31
