"""What the data of a run are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from finetooth_hooks.context import Catalog, Context, Registered
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Tokenizer
from finetooth_toolbox.decisions import Decisions


class DataSettings(Protocol):
    """What preparing reads of a recipe's section `data`."""

    @property
    def examples(self) -> int | None: ...
    @property
    def cache(self) -> Literal["auto", "off"]: ...
    @property
    def cache_gb(self) -> float: ...
    @property
    def workers(self) -> int | Literal["auto"]: ...
    @property
    def markup(self) -> Literal["plain", "special"]: ...
    @property
    def processor(self) -> Pick: ...


class RowRecipe(Protocol):
    """A recipe, as another process needs it."""

    @property
    def data(self) -> Any: ...
    def as_dict(self) -> dict[str, Any]: ...


class PluginFiles(Protocol):
    """Which plugins another process must load to build the same."""

    @property
    def files(self) -> Any: ...
    @property
    def blocked(self) -> Any: ...
    @property
    def base(self) -> Path | None: ...


class RowBuilder(Protocol):
    """Builds sources and formats."""

    @property
    def catalog(self) -> Catalog: ...
    @property
    def log(self) -> Decisions: ...
    @property
    def context(self) -> Context: ...


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
        worker: the module that renders rows in another process, `python -m WORKER`.
        scratch: folders that go with the context.
    """

    recipe: RowRecipe
    builder: RowBuilder
    folder: Path
    plugins: PluginFiles | None
    model: Callable[[], SpokenModel]
    worker: str
    scratch: list[Any] = field(default_factory=list)

    @property
    def section(self) -> DataSettings:
        """`data` of the recipe."""
        settings: DataSettings = self.recipe.data
        return settings

    @property
    def log(self) -> Decisions:
        """Takes what there is to say."""
        return self.builder.log

    @property
    def context(self) -> Context:
        """For builders."""
        return self.builder.context
