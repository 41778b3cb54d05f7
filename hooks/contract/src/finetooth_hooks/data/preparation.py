"""How a method declares the preparation of examples, and its result."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetooth_hooks.data.datum import Datum
from finetooth_hooks.data.examples import Example, Rendered, RenderedMedium
from finetooth_hooks.plan import TrainSettings
from finetooth_hooks.reports import DataReport

Render = Callable[[Example], Rendered]
"""Tokens and weights of one example, or of several sequences that belong together (`Rendered.others`); raises DataError
for an example that it cannot render."""


@dataclass(frozen=True)
class Rendering:
    """How examples become tokens, declared so that another process can do it and a cache can identify it.

    Attributes:
        build: `"package.module:function"`; `function(options, context)` returns a `Render`. It may depend only on the
            options and on the context's tokenizer, renderer, model and facts.
        options: JSON-able.
    """

    build: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """The treatment of rows that are too long or train nothing; see `TrainSettings`."""

    max_length: int
    excess_length: str

    @classmethod
    def of(cls, train: TrainSettings) -> Limit:
        """As the recipe says."""
        return cls(train.max_length, train.excess_length)


@dataclass(frozen=True)
class PreparedAs:
    """How rows of a split become tokens.

    Attributes:
        rendering, limit, first: see `Context.prepare`.
        streamed: while the run trains, without reading ahead.
    """

    rendering: Rendering
    limit: Limit | None
    first: int | None = None
    streamed: bool = False


class PreparedRows(Sequence[Datum]):
    """Prepared rows in the order of their source, as data and as one long sequence of tokens."""

    @property
    @abstractmethod
    def token_count(self) -> int:
        """Tokens of all rows."""

    @property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (R,)."""

    @property
    @abstractmethod
    def positions(self) -> NDArray[np.int64]:
        """Positions of each row, (R,): its tokens without the last, which is only predicted."""

    @property
    @abstractmethod
    def media(self) -> Iterator[tuple[RenderedMedium, ...]]:
        """Pictures, sounds and videos of each row that has any, not read."""

    @abstractmethod
    def span(self, begin: int, end: int) -> NDArray[np.int64]:
        """Tokens `begin` to `end` of all rows laid end to end, (end - begin,), shorter where they end."""

    @abstractmethod
    def begins(self, begin: int, end: int) -> NDArray[np.int64]:
        """Offsets from `begin` of the rows that begin among the tokens `begin` to `end` of all rows laid end to end."""

    @abstractmethod
    def place(self, position: int) -> tuple[str, int]:
        """Which row holds token number `position` of all rows laid end to end.

        Returns:
            The row's id, and the place of the token in it.
        """


@dataclass(frozen=True)
class Preparation:
    """Data of one split, and the report on its rows.

    Attributes:
        data: in the order of the rows; each is made when it is read.
        report: counts.
        remarks: numbers of rows by remark (`Rendered.remarks`).
    """

    data: PreparedRows
    report: DataReport
    remarks: Mapping[str, int] = field(default_factory=dict)
