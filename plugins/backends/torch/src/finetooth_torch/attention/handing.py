"""Lengths of the sequences in a row, handed from the layout to attention: plain integers, never found again on the
device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from finetooth_hooks.compute.attention import Lengths

if TYPE_CHECKING:
    from finetooth_torch.attention.slices import Slices

_LENGTHS: ContextVar[Lengths | None] = ContextVar("lengths", default=None)
_SLICES: ContextVar[Slices | None] = ContextVar("slices", default=None)


@contextmanager
def handing(lengths: Lengths, slices: Slices | None = None) -> Iterator[None]:
    """Inside the `with` block, these are the rows that the model reads.

    Args:
        lengths: row by row those of its sequences, as `finetooth_hooks.compute.attention.Attention` takes them. Keys
            that stand in a cache belong to them.
        slices: of whole rows with these lengths, the model reads this rank's positions.
    """
    token, of_slices = _LENGTHS.set(lengths), _SLICES.set(slices)
    try:
        yield
    finally:
        _LENGTHS.reset(token)
        _SLICES.reset(of_slices)


def handed() -> Lengths | None:
    """Those of the rows that are read; None if nobody said."""
    return _LENGTHS.get()


def handed_slices() -> Slices | None:
    """This rank's share of the rows that are read; None: all of them."""
    return _SLICES.get()


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
