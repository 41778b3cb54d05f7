"""The question of a task with its one right answer, and the portable random stream of tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its only right answer, both plain text."""

    prompt: str
    answer: str


class Draws:
    """Seeded random draws that are the same on every machine and Python version.

    Everything is built on `random.Random.random`, the one method whose sequence Python promises to keep for a given
    seed; `choice`, `sample` and `shuffle` of the standard library carry no such promise.
    """

    def __init__(self, seed: str) -> None:
        """Start the stream of `seed` (a string: its SHA-512 seeds the Mersenne twister)."""
        self._random = random.Random(seed).random

    def below(self, stop: int) -> int:
        """An integer in [0, stop), uniform (to within 2**-53 * stop)."""
        return int(self._random() * stop)

    def between(self, first: int, last: int) -> int:
        """An integer in [first, last], uniform."""
        return first + self.below(last - first + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, uniform."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order (a partial Fisher-Yates shuffle)."""
        pool = list(items)
        for index in range(count):
            other = index + self.below(len(pool) - index)
            pool[index], pool[other] = pool[other], pool[index]
        return pool[:count]
