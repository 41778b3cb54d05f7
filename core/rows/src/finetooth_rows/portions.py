"""Base class of sources that are read in portions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from finetooth_hooks.bases import SourceBase
from finetooth_hooks.data.examples import Row
from finetooth_hooks.data.problems import SHOWN, Problems, said_once
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Portion


class PortionedRows(SourceBase, ABC):
    """Defines `rows` of a source with the capability `portions`; a subclass defines `portions` and `read`.

    Attributes:
        name: name of the source, at the beginning of every row id: `NAME:17`, `NAME:row 17`.
        noun: the word for a row, with its plural.
    """

    capabilities = frozenset({"portions"})

    name: str
    noun: tuple[str, str] = ("row", "rows")

    @abstractmethod
    def portions(self) -> Iterator[Portion]:
        """See `protocols.Source`."""

    @abstractmethod
    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """See `protocols.Source`."""

    def rows(self) -> Iterator[Row]:
        """Yields the rows of every portion in order.

        Raises:
            DataError: the source is missing or empty. Unreadable rows are reported after the last good one, the first
                few with the reason.
        """
        broken, good = Problems(), 0
        for portion in self.portions():
            for item in self.read(portion):
                if isinstance(item, Row):
                    good += 1
                    yield item
                else:
                    broken.add(item)
        if broken.count:
            raise self.refusal(broken, good)

    def refusal(self, broken: Problems, good: int) -> DataError:
        """The error for a source with rows that cannot be read: names the first few and gives the total."""
        problems = said_once(
            (_place(error.where.removeprefix(f"{self.name}:")), error.problem.removeprefix(f"{error.where}: "))
            for error in broken.first
        )
        more = f"; and {broken.count - SHOWN} more" if broken.count > SHOWN else ""
        share = f"{broken.count} broken {self.noun[broken.count != 1]}, {good} good"
        return DataError(self.name, f"{share}: {problems}{more}", action=broken.first[0].action)


def _place(place: str) -> str:
    return f"line {place}" if place.isdigit() else place
