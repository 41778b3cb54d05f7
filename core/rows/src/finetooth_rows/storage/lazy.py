"""Sequences that make each item when it is read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeVar, overload

__all__ = ["LazySequence"]

T = TypeVar("T")


class LazySequence(Sequence[T]):
    """A sequence with the indices of a list; a subclass defines the length and makes each item.

    Attributes:
        noun: the word for an item in the error for an index out of range.
    """

    noun: ClassVar[str] = "item"

    @abstractmethod
    def make(self, place: int) -> T:
        """Item number `place`, 0 <= place < len(self)."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"{self.noun} {index} of {len(self)}")
        return self.make(place)

    def __iter__(self) -> Iterator[T]:
        return map(self.make, range(len(self)))
