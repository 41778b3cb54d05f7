"""Lengths of the sequences in a row, handed from the layout to attention: plain integers, never found again on the
device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from finetooth_hooks.attention import Lengths

_LENGTHS: ContextVar[Lengths | None] = ContextVar("lengths", default=None)


@contextmanager
def handing(lengths: Lengths) -> Iterator[None]:
    """While entered, these are the rows that the model reads.

    Args:
        lengths: row by row those of its sequences, as `finetooth_hooks.attention.Attention` takes them. Keys that
            stand in a cache belong to them.
    """
    token = _LENGTHS.set(lengths)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def handed() -> Lengths | None:
    """Those of the rows that are read; None if nobody said."""
    return _LENGTHS.get()


def newest(lengths: Lengths, keys: int) -> Lengths:
    """Lengths of what is left of the rows where only the last so many keys are kept."""
    return tuple(_newest(row, keys) for row in lengths)


def _newest(row: tuple[int, ...], keys: int) -> tuple[int, ...]:
    lengths: list[int] = []
    for length in reversed(row):
        if keys <= 0:
            break
        lengths.append(min(length, keys))
        keys -= length
    return tuple(reversed(lengths))
