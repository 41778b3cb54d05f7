"""Where rows come from and what they say: sources, the portions that they are read in, and formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Example, ReadRow, Row
from finetooth_hooks.problems import Problems


class Source(Protocol):
    """Rows, in the same order every time; as far as possible one by one, without holding all of them."""

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            DataError: a file is missing, empty or broken; names file and line. It may come after the last good row.
        """
        ...


@dataclass(frozen=True)
class Portion:
    """Rows of a source, not yet read.

    Attributes:
        content: bytes that hold some rows.
        place: what the source needs to know to name them, such as the number of the first line.
    """

    content: bytes
    place: tuple[int, ...] = ()


@runtime_checkable
class PortionedSource(Source, Protocol):
    """A source whose rows lie in bytes that are quickly cut into portions, so that several processes can read them."""

    def portions(self) -> Iterator[Portion]:
        """All rows, in order, a few hundred kilobytes at a time.

        Raises:
            DataError: the source is missing, empty, or of another kind.
        """
        ...

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """The rows of a portion, in order; an error for each that cannot be read."""
        ...

    def refusal(self, broken: Problems, good: int) -> DataError:
        """The error for a source with rows that cannot be read.

        Args:
            broken: errors of `read`.
            good: how many rows could be read.
        """
        ...


@runtime_checkable
class KnownSource(Source, Protocol):
    """A source that says what its rows are made of; only of such rows, and those of an `IdentifiedSource`, may a cache
    be kept.

    A source that has other sources read its rows also has `relies_on`, the full names of their entries: then their code
    and versions decide the rows too.
    """

    def files(self) -> tuple[Path, ...] | None:
        """Every file that is read. With its options and the versions of its packages they decide every row; None if
        they do not.

        Raises:
            DataError: they are not there.
        """
        ...


@runtime_checkable
class IdentifiedSource(Source, Protocol):
    """A source whose rows are kept by somebody who says which they are: by a commit, by a fingerprint. Such rows may be
    cached too; asked only if there are no files (`KnownSource`) to go by."""

    def identity(self) -> str | None:
        """A text that is another one whenever the rows are others; None if there is none.

        Raises:
            DataError: the rows are not there.
        """
        ...


class Format(Protocol):
    """Turns a row into an example, or into several."""

    def detect(self, values: Mapping[str, Any]) -> str | None:
        """Why this row is of the format, for the plan (`has a column 'messages'`), or None if it is not."""
        ...

    def read(self, row: Row) -> ReadRow:
        """
        Which columns it looks up in `row.values` is watched, and columns that are never looked up are told to the user.

        Returns:
            An example; or several of them, which are called `ROW#1`, `ROW#2`, ... in this order. A `LeftOut` in place
            of one is counted by its reason: for rows that are what they should be and yet teach nothing.

        Raises:
            DataError: the row is not of the format; names row and field. Such a row ends a run before it begins.
        """
        ...


@dataclass(frozen=True)
class Examples:
    """The examples of one split, read and checked.

    Attributes:
        split: `train` or `eval`.
        rows: examples with the id of their row, in the source's order. Of large data they are read anew each time
            they are gone through.
        format: which format reads them, and why.
        source: which source yielded them.
    """

    split: str
    rows: Sequence[tuple[str, Example]]
    format: str = ""
    source: str = ""
