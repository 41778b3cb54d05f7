"""What a recipe asks of the rows of its sources, and what that came to: a number for each row."""

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
    """What the recipe asks of one source.

    Attributes:
        setting: that picked it, `data.train.0`.
        slice: the part of its rows; None is all.
        max_rows: at most so many of them.
        weight: how often an epoch takes it.
    """

    setting: str
    slice: Slice | None = None
    max_rows: int | None = None
    weight: float = 1.0

    def within(self, inner: SourceChoice | None) -> SourceChoice:
        """What is asked of a source that another one stands for.

        Args:
            inner: what that one asks of it; its setting names it.

        Raises:
            RecipeError: both ask for a part of its rows.
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
    """What the recipe asks of the rows of some sources.

    Attributes:
        sources: one for each.
        deduplicate: whether rows that repeat an earlier one are left out.
        near_threshold: similarity from which on rows are near.
        fraction: share of the rows held out; 0 is none.
        fraction_seed: decides which.
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
        """Whether what the rows say decides."""
        return self.deduplicate != "off" or self.fraction > 0

    def as_json(self) -> dict[str, Any]:
        """Plain data, by which two choices are told apart."""
        return asdict(self)


@dataclass(frozen=True)
class Chosen:
    """How often each row is taken.

    Attributes:
        sizes: by source, rows of each portion, as far as rows were gone through.
        taken: by source, how often an epoch takes each of these rows, uint32.
        held: by source, whether it is held out, 0 or 1.
        dropped: rows left out because they repeat another, as they are reported.
        said: (setting, rows, why) for the plan: of each source, and last of what is held out.
    """

    sizes: tuple[NDArray[np.int64], ...]
    taken: tuple[NDArray[np.uint32], ...]
    held: tuple[NDArray[np.uint32], ...]
    dropped: Tally
    said: tuple[tuple[str, int, str], ...]


class Selected(Protocol):
    """Rows of some sources that are taken."""

    @property
    def choice(self) -> Choice:
        """What the recipe asks."""
        ...

    @property
    def chosen(self) -> Chosen:
        """What that comes to; found when it is first asked for."""
        ...
