"""The context that builders get: a facade over the builder, the base model and the data of one recipe."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.context import Opened
from finetooth_hooks.data.examples import Rendered
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from finetooth_hooks.errors import DataError, PluginError, RecipeError
from finetooth_hooks.plan import Decision, Pick, Plan, TrainSettings
from finetooth_hooks.protocols import (
    Examples,
    HardwareFacts,
    Loader,
    ModelFacts,
    ModelInfo,
    Processor,
    Renderer,
    Tokenizer,
)
from finetooth_rows.parts import SpokenModel
from finetooth_toolbox.decisions import Decisions

from finetooth_core.data.run_parts import RunParts
from finetooth_core.models.base_model import BaseModel, base_model, renderer_of
from finetooth_core.models.stages import FromRun, Loading
from finetooth_core.planning.framework import framework_of
from finetooth_core.plugins.catalog import Catalog
from finetooth_core.plugins.collector import paused_collector
from finetooth_core.plugins.part_builder import Builder, BuiltPart, is_auto
from finetooth_core.settings.recipe import Recipe

if TYPE_CHECKING:
    from finetooth_core.data.dataset import Dataset
    from finetooth_core.planning.joined import JoinedRank
    from finetooth_core.plugins.manager import Plugins

OpenModel = Callable[[str, Mapping[str, Any] | None, Callable[[str], None]], Opened]
"""Opens a model by its reference, with sections of its recipe replaced; with a function for notes."""


WORKER = "finetooth_core.data.worker"
"""Renders rows in another process."""


class RunContext:
    """Implements `finetooth_hooks.Context` for one recipe.

    Args:
        recipe: checked, `auto` not yet decided.
        catalog: all entries.
        folder: the run folder, or where it will be.
        plugins: source of the catalog; without them no other process can build the same context.
        open_model: opens other models; without it none can be opened.
        framework: of loader and adapter, if decided; default: see `framework_of`.
        hardware: of another machine; None: of this one.
        sketched: only the model's config is known, without weights or tokenizer.
        memory: assumed bytes of the device, all free; 0: the real ones.

    Attributes:
        log: decisions, picks and notes so far.
        builder: builds entries.
        train: the `train` section, as decided so far.
        plan: None until it is decided.
        opened: models that its parts opened besides the recipe's.
    """

    def __init__(
        self,
        recipe: Recipe,
        catalog: Catalog,
        folder: Path,
        plugins: Plugins | None = None,
        *,
        open_model: OpenModel | None = None,
        framework: str = "",
        hardware: HardwareFacts | None = None,
        sketched: bool = False,
        memory: int = 0,
    ) -> None:
        self.hardware, self._sketched, self.memory = hardware, sketched, memory
        self.recipe, self.catalog, self.folder, self.plugins = recipe, catalog, folder, plugins
        self.train: TrainSettings = recipe.train.settings()
        self.plan: Plan | None = None
        self.log = Decisions(recipe.notes)
        self.builder = Builder(catalog, self.log, self)
        self._open_model, self._framework = open_model, framework
        self.joined: JoinedRank | None = None  # the ranks that train the run; None: this process alone
        self.awaited: dict[str, str] = {}
        """Metrics of evaluations that parts wait for, by the setting that names them."""
        self.opened: list[Opened] = []  # models opened besides the recipe's

    def beside(self, recipe: Recipe, folder: Path | None = None) -> RunContext:
        """A context of another recipe for the same plugins, and the same framework unless it names a backend.

        Args:
            folder: default is that of this one.
        """
        made = RunContext(
            recipe,
            self.catalog,
            folder or self.folder,
            self.plugins,
            open_model=self._open_model,
            framework=self.framework if is_auto(recipe.backend) else "",
            hardware=self.hardware,
            sketched=self._sketched,
            memory=self.memory,
        )
        made.joined = self.joined
        return made

    @property
    def markup(self) -> Literal["plain", "special"]:
        return self.recipe.data.markup

    def planned(self, plan: Plan) -> None:
        """Set once, when everything is decided."""
        self.plan, self.train = plan, plan.train

    # --- the parts ----------------------------------------------------------------------------------------------------

    @cached_property
    def framework(self) -> str:
        """That the backend computes with; see `framework_of`."""
        return self._framework or framework_of(self.recipe, self.builder)

    @cached_property
    def base(self) -> BaseModel:
        """The base model; no weights are read. The default of `train.max_length` is no more than its positions."""
        base = base_model(self.recipe, self.builder, lambda: self.framework, self.beside, sketched=self._sketched)
        most, name = base.facts.max_positions, "max_length"
        if self.train.max_length > most > 1 and name not in self.recipe.train.model_fields_set:
            self.train = replace(self.train, max_length=most)
            self.decide(f"train.{name}", most, f"{self.recipe.model.name} has no more positions")
        return base

    @cached_property
    @paused_collector()
    def renderer_built(self) -> BuiltPart:
        """The renderer with its entry and options."""
        return renderer_of(self.recipe, self.builder, self.base)

    @cached_property
    def data(self) -> Dataset:
        """Rows, examples and tokens."""
        from finetooth_core.data.dataset import Dataset

        return Dataset(self.data_parts)

    @cached_property
    def data_parts(self) -> RunParts:
        """What the data are made with."""
        return RunParts(self.recipe, self.builder, self.folder, self.plugins, self._spoken_model, WORKER)

    def _spoken_model(self) -> SpokenModel:
        base, renderer = self.base, self.renderer_built
        entries = {**base.entries, "renderer": (renderer.registered, renderer.plain_options)}
        return SpokenModel(entries, base.info.config, self.tokenizer)

    # --- building -----------------------------------------------------------------------------------------------------

    def build(self, kind: str, pick: Pick, *, setting: str = "") -> Any:
        speaks = self.framework if kind in ("adapter", "optimizer", "quantizer") else ""
        return self.builder.build(kind, pick, setting=setting, framework=speaks).part

    def loss(self, pick: Pick, *, setting: str = "") -> LossSpec:
        return self.builder.loss(pick, setting=setting)

    # --- the model ----------------------------------------------------------------------------------------------------

    @property
    def loader(self) -> Loader:
        return self.base.loader

    @property
    def loading(self) -> Loading:
        """The entry of the loader, and its options."""
        return self.base.entries["loader"]

    @property
    def run(self) -> FromRun | None:
        """The run whose artifact is the model; None if the model comes from elsewhere."""
        return self.base.run

    @property
    def model(self) -> ModelInfo:
        return self.base.info

    @property
    def facts(self) -> ModelFacts:
        return self.base.facts

    @property
    def tokenizer(self) -> Tokenizer:
        if self.base.tokenizer is None:
            raise RecipeError("model", f"{self.recipe.model.name} was only sketched", action="load it whole")
        return self.base.tokenizer

    @property
    def renderer(self) -> Renderer:
        built: Renderer = self.renderer_built.part
        return built

    @cached_property
    def processor(self) -> Processor:
        built: Processor = self.builder.section("processor", self.recipe.data.processor, "data.processor").part
        return built

    # --- the data -----------------------------------------------------------------------------------------------------

    def examples(self, split: str, *, first: int | None = None) -> Examples:
        return self.data.examples(split, first=first)

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None
    ) -> Preparation:
        return self.data.prepare(split, rendering, limit, first=first)

    def stream(self, split: str, rendering: Rendering, *, skip: int = 0) -> Iterator[tuple[str, Rendered | DataError]]:
        return self.data.stream(split, rendering, skip=skip)

    # --- the log ------------------------------------------------------------------------------------------------------

    def wait_for(self, metric: str, *, setting: str) -> None:
        self.awaited[setting] = metric

    def note(self, text: str, *, topic: str = "") -> None:
        self.log.note(text, topic=topic)

    def decide(self, setting: str, value: Any, reason: str) -> None:
        """See `Decisions.decide`."""
        self.log.decide(setting, value, reason)

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """Those made so far, by setting."""
        return self.log.made

    @property
    def options(self) -> Mapping[str, Mapping[str, Any]]:
        return self.log.options

    @property
    def notes(self) -> Sequence[str]:
        """Told so far."""
        return self.log.notes

    def unheard(self) -> AbstractContextManager[None]:
        """See `Decisions.unheard`."""
        return self.log.unheard()

    # --- everything else ----------------------------------------------------------------------------------------------

    @property
    def cache(self) -> Path:
        from finetooth_toolbox.files.cache_folder import cache_folder

        return cache_folder() / "plugins"

    def hold(self, path: Path) -> None:
        from finetooth_rows.storage.in_use import hold

        weakref.finalize(self, os.close, hold(path))
        with suppress(OSError):  # a cache that may only be read
            os.utime(path.parent)

    def open(self, reference: str, changes: Mapping[str, Any] | None = None) -> Opened:
        if self._open_model is None:
            raise PluginError("", f"{reference}: this context cannot open models", action="build it with its plugins")
        made = self._open_model(reference, changes, self.note)
        self.opened.append(made)
        return made

    def generator(self, *keys: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.train.seed, *keys)).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest[:16], dtype=np.uint32))
