"""The inputs that determine the data of a run."""

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
    """The settings of a recipe's section `data` that preparation reads."""

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
    """A recipe for another process."""

    @property
    def data(self) -> Any: ...
    def as_dict(self) -> dict[str, Any]: ...


class PluginFiles(Protocol):
    """The plugins that another process must load to build the same objects."""

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
    """The parts of a model that determine the tokens of a row.

    Attributes:
        entries: loader, family and renderer, with their options if known.
        config: of the model.
        tokenizer: of the model.
    """

    entries: Mapping[str, tuple[Registered, Mapping[str, Any] | None]]
    config: Mapping[str, Any]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class DataParts:
    """The inputs that determine the data of a run.

    Attributes:
        recipe: of the run.
        builder: of sources and formats.
        folder: of the run.
        plugins: sources of the catalog; without them no other process can build the same objects.
        model: the model that determines the tokens; accessed only if tokens are made.
        worker: the module that renders rows in another process, `python -m WORKER`.
        scratch: temporary folders that are deleted with the context.
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
        """Receives notes and decisions."""
        return self.builder.log

    @property
    def context(self) -> Context:
        """For builders."""
        return self.builder.context
