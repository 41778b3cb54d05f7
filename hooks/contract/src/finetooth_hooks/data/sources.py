"""Sources yield rows, whole or in portions; formats turn rows into examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetooth_hooks.data.examples import Example, ReadRow, Row
from finetooth_hooks.data.problems import Problems
from finetooth_hooks.errors import DataError


@dataclass(frozen=True)
class Portion:
    """Unread rows of a source.

    Attributes:
        content: bytes with some rows.
        place: for naming them, such as the number of the first line.
    """

    content: bytes
    place: tuple[int, ...] = ()


class Source(Protocol):
    """Rows, in the same order every time; as far as possible one by one, without holding all of them.

    A source derives from `finetooth_hooks.SourceBase`, which has defaults of everything but `rows`: no files, no
    identity, no portions.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its abilities besides `rows`, from `finetooth_hooks.capabilities.SOURCE`."""
        ...

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of the source.

        Raises:
            DataError: a file is missing, empty or broken; names file and line. It may come after the last good row.
        """
        ...

    def files(self) -> tuple[Path, ...] | None:
        """Every file that is read. With its options and the versions of its packages they determine every row; None if
        they do not. Only rows of known files, or with an `identity`, may be cached.

        Raises:
            DataError: a file is missing.
        """
        ...

    def identity(self) -> str | None:
        """A text that changes whenever the rows change, such as a commit or a fingerprint; None if the source has none.
        Called only if `files` returns None.

        Raises:
            DataError: the rows are missing.
        """
        ...

    def stands_for(self) -> tuple[Mapping[str, Any], ...] | None:
        """Sources to read instead of this one, for a source that only lists other sources. Each is a mapping as in
        `data.train`: `{name: jsonl, path: ..., format: ...}`. None: the source has rows of its own.

        Raises:
            DataError: what it lists is wrong.
        """
        ...

    @property
    def relies_on(self) -> tuple[str, ...]:
        """Full names of the entries that read rows for it: their code and versions decide the rows too."""
        ...

    def portions(self) -> Iterator[Portion]:
        """All rows, in order, a few hundred kilobytes at a time. Capability `portions`.

        Raises:
            DataError: the source is missing, empty, or of another kind.
        """
        ...

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """The rows of a portion, in order; an error for each that cannot be read. Capability `portions`."""
        ...

    def refusal(self, broken: Problems, good: int) -> DataError:
        """The error for a source with rows that cannot be read. Capability `portions`.

        Args:
            broken: errors of `read`.
            good: how many rows could be read.
        """
        ...


class Format(Protocol):
    """Turns a row into an example, or into several."""

    def detect(self, values: Mapping[str, Any]) -> str | None:
        """Why this row has the format, for the plan (`has a column 'messages'`), or None if it does not."""
        ...

    def read(self, row: Row) -> ReadRow:
        """
        The columns that it reads in `row.values` are recorded; unused columns are reported to the user.

        Returns:
            An example; or several, with the ids `ROW#1`, `ROW#2`, ... in order. A `LeftOut` instead of one is counted
            by its reason, for correct rows that teach nothing.

        Raises:
            DataError: the row is not of the format; names row and field. Such a row ends a run before it begins.
        """
        ...


@dataclass(frozen=True)
class Examples:
    """The examples of one split, read and checked.

    Attributes:
        split: `train` or `eval`.
        rows: examples with the id of their row, in the source's order. Large data are read again on every
            iteration.
        format: which format reads them, and why.
        source: which source yielded them.
    """

    split: str
    rows: Sequence[tuple[str, Example]]
    format: str = ""
    source: str = ""
