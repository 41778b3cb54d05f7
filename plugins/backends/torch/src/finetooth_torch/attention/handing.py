"""Passes the lengths of a row's sequences from the layout to attention, as plain integers, so that the device need not
find them."""

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
    """Inside the `with` block, the model reads these rows.

    Args:
        lengths: of each row's sequences, as `finetooth_hooks.compute.attention.Attention` takes them. They include
            cached keys.
        slices: of whole rows with these lengths, the model reads this rank's positions.
    """
    token, of_slices = _LENGTHS.set(lengths), _SLICES.set(slices)
    try:
        yield
    finally:
        _LENGTHS.reset(token)
        _SLICES.reset(of_slices)


def handed() -> Lengths | None:
    """Lengths of the rows that the model reads; None if unknown."""
    return _LENGTHS.get()


def handed_slices() -> Slices | None:
    """This rank's share of the rows that the model reads; None: all of them."""
    return _SLICES.get()


def newest(lengths: Lengths, keys: int) -> Lengths:
    """Lengths within the last so many keys of the rows."""
    return tuple(_newest(row, keys) for row in lengths)


def _newest(row: tuple[int, ...], keys: int) -> tuple[int, ...]:
    lengths: list[int] = []
    for length in reversed(row):
        if keys <= 0:
            break
        lengths.append(min(length, keys))
        keys -= length
    return tuple(reversed(lengths))
