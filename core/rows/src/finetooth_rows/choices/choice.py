"""A recipe's choice of rows of its sources, and the result: a number for each row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from finetooth_hooks.errors import RecipeError
from numpy.typing import NDArray

from finetooth_rows.choices.slices import Slice
from finetooth_rows.tally import Tally


@dataclass(frozen=True)
class SourceChoice:
    """The recipe's choice of rows of one source.

    Attributes:
        setting: the setting that picked it, `data.train.0`.
        slice: the part of its rows; None is all.
        max_rows: the largest number of them.
        weight: the number of times that an epoch takes it.
    """

    setting: str
    slice: Slice | None = None
    max_rows: int | None = None
    weight: float = 1.0

    def within(self, inner: SourceChoice | None) -> SourceChoice:
        """The choice for a source in a listing, to which this choice applies.

        Args:
            inner: the choice of the listed source itself, with its own setting.

        Raises:
            RecipeError: both take a part of its rows.
        """
        if inner is None:
            return self
        if self.slice and inner.slice:
            raise RecipeError(
                self.setting,
                f"{self.slice.text} of what {inner.setting} lists, which takes {inner.slice.text} itself",
                action="leave one of the two slices out",
            )
        bounds = [choice.max_rows for choice in (self, inner) if choice.max_rows is not None]
        return replace(inner, slice=self.slice or inner.slice, max_rows=min(bounds, default=None), weight=self.weight)


@dataclass(frozen=True)
class Choice:
    """The recipe's choice of rows of some sources.

    Attributes:
        sources: one choice for each.
        deduplicate: whether repetitions of earlier rows are left out.
        near_threshold: smallest similarity of near duplicates.
        fraction: share of the rows held out; 0 is none.
        fraction_seed: decides which rows are held out.
        temperature, mix_rows, mix_seed: as in `data.mix` of a recipe; a temperature of None is `even`.
    """

    sources: tuple[SourceChoice, ...]
    deduplicate: Literal["off", "exact", "near"] = "off"
    near_threshold: float = 0.8
    fraction: float = 0.0
    fraction_seed: int = 0
    temperature: float | None = 1.0
    mix_rows: int | None = None
    mix_seed: int = 0

    @property
    def takes_all(self) -> bool:
        """Every row is taken once."""
        plain = all((source.slice, source.max_rows, source.weight) == (None, None, 1.0) for source in self.sources)
        return plain and not self.by_content and self.temperature == 1.0 and self.mix_rows is None

    @property
    def by_content(self) -> bool:
        """Whether the content of the rows affects the choice."""
        return self.deduplicate != "off" or self.fraction > 0

    def as_json(self) -> dict[str, Any]:
        """Plain data that differ between different choices."""
        return asdict(self)


@dataclass(frozen=True)
class Chosen:
    """The number of times that each row is taken.

    Attributes:
        sizes: by source, rows of each portion, as far as they were read.
        taken: by source, the number of times that an epoch takes each of these rows, uint32.
        held: by source, 1 for each held-out row, else 0.
        dropped: rows left out as repetitions, for the report.
        said: (setting, rows, reason) for the plan: of each source, then of the held-out rows.
    """

    sizes: tuple[NDArray[np.int64], ...]
    taken: tuple[NDArray[np.uint32], ...]
    held: tuple[NDArray[np.uint32], ...]
    dropped: Tally
    said: tuple[tuple[str, int, str], ...]


class Selected(Protocol):
    """The chosen rows of some sources."""

    @property
    def choice(self) -> Choice:
        """The recipe's choice."""
        ...

    @property
    def chosen(self) -> Chosen:
        """The result of the choice, computed at the first access."""
        ...
