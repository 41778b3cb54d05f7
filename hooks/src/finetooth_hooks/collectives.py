"""Several ranks that train one set of parameters together: what an engine asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Collective(Protocol):
    """One rank's line to the others. Every rank makes the same calls in the same order; a call returns once all have
    made it.

    An engine that has one expects that each rank's calls together hold the data of a step, that each call is given the
    normalizers of the whole step (`normalizer`), and that all ranks call `step` at the same place.
    """

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""
        ...

    @property
    def world(self) -> int:
        """How many there are."""
        ...

    def sum(self, arrays: Sequence[Any]) -> list[Any]:
        """Element by element, the sums over all ranks: the same bits at each of them.

        Args:
            arrays: of the backend's framework, in the same order, shapes and types at every rank; left as they are.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in the order of ranks; JSON-able."""
        ...
