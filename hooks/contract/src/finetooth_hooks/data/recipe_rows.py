"""Rows of a recipe as a run trains them, for commands and services that show, count or write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finetooth_hooks.compute.backends import EngineRequest, StepCost
from finetooth_hooks.data.examples import Example, Rendered, Row
from finetooth_hooks.data.preparation import Limit, Preparation, PreparedAs, Rendering
from finetooth_hooks.errors import DataError
from finetooth_hooks.evaluators import Evaluator
from finetooth_hooks.methods import Method
from finetooth_hooks.models import Tokenizer
from finetooth_hooks.plan import Plan
from finetooth_hooks.reports import DataReport, Prepared


@dataclass(frozen=True)
class PreviewRow:
    """One rendered row, with tokens not yet decoded.

    Attributes:
        number: from 1, in the order of the source.
        id: for errors.
        rendered: all of its tokens, after cutting turns; None if it cannot be rendered, or its format leaves it out.
        kept: tokens within `train.max_length`.
        fate: its use, in words: `used`, `left out: ...`, `cut to 512 tokens`.
        used: it trains.
        error: that would end a run; None: none.
        read: its format could read it.
    """

    number: int
    id: str
    rendered: Rendered
    kept: int
    fate: str
    used: bool
    error: DataError | None = None
    read: bool = True

    @property
    def broken(self) -> bool:
        """Whether a run ends with an error because of it."""
        return self.error is not None


class Decided(Protocol):
    """A run with every decision made and its data prepared; no weights are loaded.

    Attributes:
        method: its data are prepared; None without data.
        prepared: steps, and the usage of rows.
        evaluators: in the recipe's order.
        reports: the usage of rows, by split.
        every_report: of all readers: evaluators may use other rows of one split.
        padding: share of padding in the backend's layout; see `BackendPlan.padding`.
        cost: of steps, or why it is unknown; see `BackendPlan.cost`.
        request: for the engine.
        prepared_as: how the rows of each split become tokens.
        not_kept: why the tokens of a split are not cached, regardless of the recipe.
    """

    @property
    def plan(self) -> Plan: ...
    @property
    def method(self) -> Method | None: ...
    @property
    def prepared(self) -> Prepared: ...
    @property
    def evaluators(self) -> tuple[Evaluator, ...]: ...
    @property
    def reports(self) -> tuple[DataReport, ...]: ...
    @property
    def every_report(self) -> tuple[DataReport, ...]: ...
    @property
    def padding(self) -> Callable[[Sequence[Sequence[int]]], float] | None: ...
    @property
    def cost(self) -> StepCost | str: ...
    @property
    def request(self) -> EngineRequest: ...
    @property
    def prepared_as(self) -> Mapping[str, PreparedAs]: ...
    @property
    def not_kept(self) -> Mapping[str, str]: ...

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None, quiet: bool = False
    ) -> Preparation:
        """See `Context.prepare`.

        Args:
            quiet: no notes on the rows for the user.
        """
        ...


class RecipeRows(Protocol):
    """Rows of a recipe as a run trains them (`CommandContext.rows`). Nothing is read before it is asked for."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe, checked."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the recipe's model."""
        ...

    @property
    def decided(self) -> Decided:
        """The planned run, with all rows read and prepared.

        Raises:
            DataError: rows are broken; `preview` still shows the others.
            FinetoothError: the run cannot be planned.
        """
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, `train` and `eval`, whose rows become tokens."""
        ...

    def preview(self, split: str) -> Iterator[PreviewRow]:
        """Rows of a split as the method (held out: the first evaluator) renders them, in order, including broken ones.

        Raises:
            RecipeError: the recipe gives no data for the split, or nothing reads them.
            DataError: a source is missing, or cannot be read any further.
        """
        ...

    def first(self, split: str, count: int) -> Sequence[Row]:
        """The first raw rows of a split, in any format, without unreadable ones.

        Args:
            count: most rows of each source.

        Raises:
            RecipeError: no source knows what `data` names, or several do.
            DataError: a source is missing, or no row of it can be read.
        """
        ...

    def read(self, split: str) -> tuple[Sequence[tuple[str, Example]], DataReport]:
        """All examples of a split with their ids, and which rows are left out.

        Raises:
            DataError: rows cannot be read, or are not of the format.
        """
        ...

    def remarks(self, split: str) -> Sequence[tuple[str, str]]:
        """How the rows are read, and notes on them: (setting or `note`, text)."""
        ...
