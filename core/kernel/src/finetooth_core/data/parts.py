"""What the data of a run are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.context import Context, Registered
from finetooth_hooks.protocols import Tokenizer

from finetooth_core.decisions import Decisions
from finetooth_core.part_builder import Builder
from finetooth_core.recipe import Recipe
from finetooth_core.recipe_data import DataSection

if TYPE_CHECKING:
    from finetooth_core.manager import Plugins


@dataclass(frozen=True)
class SpokenModel:
    """What of a model decides the tokens of a row.

    Attributes:
        entries: loader, family and renderer, with their options where they are known.
        config: of the model.
        tokenizer: of the model.
    """

    entries: Mapping[str, tuple[Registered, Mapping[str, Any] | None]]
    config: Mapping[str, Any]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class DataParts:
    """What the data of a run are made with.

    Attributes:
        recipe: of the run.
        builder: of sources and formats.
        folder: of the run.
        plugins: where the catalog came from; without them no other process can build the same.
        model: whose tokens they become; asked for only where tokens are made.
        scratch: folders that go with the context.
    """

    recipe: Recipe
    builder: Builder
    folder: Path
    plugins: Plugins | None
    model: Callable[[], SpokenModel]
    scratch: list[Any] = field(default_factory=list)

    @property
    def section(self) -> DataSection:
        """`data` of the recipe."""
        return self.recipe.data

    @property
    def log(self) -> Decisions:
        """Takes what there is to say."""
        return self.builder.log

    @property
    def context(self) -> Context:
        """For builders."""
        return self.builder.context
