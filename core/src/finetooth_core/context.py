"""The context that builders get: builds entries, reads the model's facts and the data, hands out random streams."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from finetooth_hooks.entries import Claim, Loss
from finetooth_hooks.entries import Loader as LoaderEntry
from finetooth_hooks.errors import DataError, PluginError, RecipeError
from finetooth_hooks.examples import Rendered
from finetooth_hooks.losses import LossSpec
from finetooth_hooks.plan import Decision, Pick, Plan, TrainSettings
from finetooth_hooks.preparation import Limit, Preparation, Rendering
from finetooth_hooks.protocols import (
    Examples,
    Family,
    Loader,
    ModelFacts,
    ModelInfo,
    Processor,
    Renderer,
    Source,
    Tokenizer,
)

from finetooth_core.builders import import_failure, load_builder
from finetooth_core.catalog import Catalog, Registered
from finetooth_core.claims import refuse_misspelt, unclaimed
from finetooth_core.collector import paused_collector
from finetooth_core.data.picked import PickedSource
from finetooth_core.data.prepared_as import PreparedAs
from finetooth_core.data.reading import SplitRows, read_all
from finetooth_core.recipe import Recipe, validate_options
from finetooth_core.stages import FromRun, from_run
from finetooth_core.vocabulary import ChangedTokens, text_config

if TYPE_CHECKING:
    from finetooth_core.manager import Plugins
    from finetooth_core.opened import OpenedModel

AUTO = "auto"


class RunContext:
    """Implements `finetooth_hooks.Context` for one recipe.

    Args:
        recipe: checked, `auto` not yet decided.
        catalog: all entries.
        folder: the run folder, or where it will be.
        plugins: where the catalog came from; without them no other process can build the same context.
    """

    def __init__(self, recipe: Recipe, catalog: Catalog, folder: Path, plugins: Plugins | None = None) -> None:
        self.recipe = recipe
        self.catalog = catalog
        self.folder = folder
        self.train: TrainSettings = recipe.train.settings()
        self.plan: Plan | None = None
        self.notes: list[str] = list(recipe.notes)
        self.decisions: dict[str, Decision] = {}
        self.picked: dict[str, str] = {}
        self.losses: list[tuple[str, LossSpec]] = []  # those built so far, with the setting that picked them
        self.options: dict[str, Mapping[str, Any]] = {}
        self.announce: Callable[[str], None] | None = None
        self.run: FromRun | None = None  # the one whose artifact is the model; known once the loader is
        self.plugins = plugins
        self._topics: dict[str, str] = {}
        self._examples: dict[str, Examples] = {}
        self._rows: dict[str, SplitRows] = {}
        self.prepared_as: dict[str, PreparedAs] = {}  # how rows of a split first became tokens
        self.not_kept: dict[str, str] = {}  # why tokens of a split are not kept, where the recipe has no say
        self.scratch: list[Any] = []  # folders that go with this context
        self.opened: list[OpenedModel] = []  # what its parts opened beside the model of the recipe

    @property
    def cache(self) -> Path:
        from finetooth_core.data.folders import cache_folder

        return cache_folder() / "plugins"

    def hold(self, path: Path) -> None:
        from finetooth_core.data.in_use import hold

        weakref.finalize(self, os.close, hold(path))
        with suppress(OSError):  # a cache that may only be read
            os.utime(path.parent)

    # --- building -----------------------------------------------------------------------------------------------------

    def build(self, kind: str, pick: Pick, *, setting: str = "") -> Any:
        return self._build(self.entry(kind, pick, setting=setting), pick, setting)

    def entry(self, kind: str, pick: Pick, *, setting: str = "") -> Registered:
        """The entry a pick names."""
        name = pick if isinstance(pick, str) else pick.get("name")
        if not isinstance(name, str):
            raise RecipeError(setting, f"the mapping has no 'name' that picks a {kind}", action="add name: NAME")
        return self.catalog.get(kind, name, setting=setting)

    def loss(self, pick: Pick, *, setting: str = "") -> LossSpec:
        registered = self.entry("loss", pick, setting=setting)
        entry = registered.entry
        if not isinstance(entry, Loss):
            raise PluginError(registered.distribution, f"{entry.name} is not declared as a Loss")
        fn = self._build(registered, pick, setting)
        spec = LossSpec(registered.full_name, fn, entry.needs, entry.together, entry.proportional_to)
        self.losses.append((setting or "method", spec))
        return spec

    def section(self, kind: str, pick: Pick, setting: str) -> Any:
        """Build a single-choice section of the recipe and record the pick for the plan; `auto` takes the default
        entry."""
        if AUTO in (pick, pick if isinstance(pick, str) else pick.get("name")):  # {name: auto, ...} gives options only
            registered = self.catalog.default(kind, setting=setting)
            self.decide(setting, registered.full_name, f"the default {kind}")
            pick = _renamed(pick, registered.full_name)
        else:
            registered = self.entry(kind, pick, setting=setting)
            self.decide(setting, registered.full_name, "the recipe says so")
        self.picked[kind] = registered.full_name
        return self._build(registered, pick, setting, record=kind)

    @paused_collector()  # the first build of an entry imports its module
    def _build(self, registered: Registered, pick: Pick, setting: str, record: str = "") -> Any:
        options = validate_options(self.catalog, registered.entry.kind, _renamed(pick, registered.full_name), setting)
        if record:
            self.options[record] = options.model_dump(mode="json")
        builder = load_builder(registered)
        try:
            return builder(options, self)
        except ImportError as error:
            what = f"{registered.entry.kind} {registered.entry.name!r}"
            raise import_failure(error, what, registered.distribution) from error

    def decide(self, setting: str, value: Any, reason: str) -> None:
        """Record a decision for the plan; a later one about the same setting replaces it."""
        self.decisions[setting] = Decision(setting, value, reason)

    # --- the model ----------------------------------------------------------------------------------------------------

    @cached_property
    def loader(self) -> Loader:
        """The loader that claims `model`, or the one the recipe picks; with the tokens that the recipe changes."""
        changes = self.recipe.model.token_changes()
        return ChangedTokens(self._models_own_loader(), changes) if changes else self._models_own_loader()

    def _models_own_loader(self) -> Loader:
        if (run := from_run(self)) is not None:
            self.run = run
            return run
        model = self.recipe.model
        if model.loader != AUTO:
            built: Loader = self.section("loader", model.loader, "model.loader")
            return built
        registered, claim = self._claimed("loader", model.name, "model")
        self.decide("model.loader", registered.full_name, claim.reason)
        self.picked["loader"] = registered.full_name
        built = self._build(registered, registered.full_name, "model.loader", record="loader")
        return built

    @cached_property
    @paused_collector()  # may import what reads models
    def model(self) -> ModelInfo:
        """The base model, described; no weights are read."""
        info = self.loader.describe(self.recipe.model.name)
        return replace(info, loader=self.picked["loader"])

    @cached_property
    @paused_collector()
    def facts(self) -> ModelFacts:
        """What the family says of the model; tokens that the recipe adds are among them."""
        facts = self._family_facts()
        if not isinstance(self.loader, ChangedTokens):
            return facts
        new = self.loader.new_tokens(self.recipe.model.name)
        rows = int(text_config(self.model.config)["vocab_size"])
        if new:
            begin = "their embeddings begin as the mean of the others"
            self.decide("model.added_tokens", len(new), f"ids {new[0]} to {new[-1]}; {begin}")
        return replace(facts, new_tokens=new, vocab_size=rows)

    def _family_facts(self) -> ModelFacts:
        family, config = self.recipe.model.family, self.model.config
        if isinstance(self.loader, ChangedTokens):  # a vocabulary that the recipe enlarged says nothing of the family
            config = self.loader.config(self.recipe.model.name)
        if family != AUTO:
            built: Family = self.section("family", family, "model.family")
            return built.facts(config)
        kind = self.model.model_type
        matching = [r for r in self.catalog.all("family") if kind in getattr(r.entry, "model_types", ())]
        if len(matching) > 1:
            names = ", ".join(r.full_name for r in matching)
            raise RecipeError("model.family", f"several families know model type {kind!r}: {names}", action="pick one")
        registered = matching[0] if matching else self.catalog.default("family", setting="model.family")
        reason = (
            f"model type {kind!r}"
            if matching
            else f"no family names model type {kind!r}; this one reads its facts off the model"
        )
        self.decide("model.family", registered.full_name, reason)
        self.picked["family"] = registered.full_name
        built = self._build(registered, registered.full_name, "model.family", record="family")
        return built.facts(config)

    @cached_property
    @paused_collector()
    def tokenizer(self) -> Tokenizer:
        return self.loader.tokenizer(self.recipe.model.name)

    @cached_property
    def renderer(self) -> Renderer:
        pick: Pick = self.recipe.data.renderer
        if pick == AUTO and self.loader and self.run is not None:
            return self._renderer_of_run(self.run)
        if pick == AUTO:
            pick = self.facts.renderer
            registered = self.entry("renderer", pick, setting="data.renderer")
            self.decide("data.renderer", registered.full_name, "what the model's family speaks")
            self.picked["renderer"] = registered.full_name
            built: Renderer = self._build(registered, pick, "data.renderer", record="renderer")
            return built
        built = self.section("renderer", pick, "data.renderer")
        return built

    def _renderer_of_run(self, run: FromRun) -> Renderer:
        """The renderer that the run was trained with: another markup would be another language."""
        spoken = run.parent.renderer
        name, options = run.parent.picked["renderer"], run.parent.options.get("renderer", {})
        del spoken
        registered = self.entry("renderer", name, setting="data.renderer")
        self.decide("data.renderer", registered.full_name, f"as run {self.recipe.model.name} has it")
        self.picked["renderer"] = registered.full_name
        built: Renderer = self._build(registered, {"name": name, **options}, "data.renderer", record="renderer")
        return built

    @cached_property
    def processor(self) -> Processor:
        built: Processor = self.section("processor", self.recipe.data.processor, "data.processor")
        return built

    # --- the data -----------------------------------------------------------------------------------------------------

    def examples(self, split: str, *, first: int | None = None) -> Examples:
        if split not in self._examples:
            rows = self.rows(split)
            self._check_files(rows)
            formats, names = (
                ", ".join(dict.fromkeys(one.registered.full_name for one in picked))
                for picked in (rows.formats, rows.sources)
            )
            self._examples[split] = Examples(split, rows.examples(), formats, names)
        found = self._examples[split]
        return found if first is None else replace(found, rows=self.rows(split).first(first).examples())

    def has(self, split: str) -> bool:
        """Whether the recipe gives data for the split."""
        return getattr(self.recipe.data, split) is not None

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None
    ) -> Preparation:
        from finetooth_core.data.preparing import prepare

        self.prepared_as.setdefault(split, PreparedAs(rendering, limit, first))
        return prepare(self, split, rendering, limit, first)

    def stream(self, split: str, rendering: Rendering, *, skip: int = 0) -> Iterator[tuple[str, Rendered | DataError]]:
        from finetooth_core.data.streaming import stream

        self.prepared_as.setdefault(split, PreparedAs(rendering, None, streamed=True))
        self.not_kept[split] = "its rows are read and tokenised while training"
        self._check_files(self.rows(split), if_pinned=True)
        return stream(self, split, rendering, skip)

    def rows(self, split: str, *, formats: Sequence[str] = ()) -> SplitRows:
        """The rows of a split, not yet read but for the first one of each source, which shows its format.

        Args:
            formats: full names of the formats, one for each source, if they are known already.
        """
        if split not in self._rows:
            held_out = split == "eval" and self.recipe.data.held_out is not None
            self._rows[split] = self._held_out(formats) if held_out else self._own_rows(split, formats)
        return self._rows[split]

    def _own_rows(self, split: str, formats: Sequence[str]) -> SplitRows:
        from finetooth_core.data.formats import formats_of
        from finetooth_core.data.selection import Selection, choice_of

        sources = self._sources(split)
        try:
            found = formats_of(self, sources, formats)
        except DataError:
            read_all(sources)
            raise
        choice = choice_of(self.recipe.data, split, sources)
        return SplitRows(split, sources, found, None if choice.takes_all else Selection(self, choice, sources, found))

    def _held_out(self, formats: Sequence[str]) -> SplitRows:
        """Held-out rows that are a part of the training rows."""
        if self.recipe.data.train is None:
            raise RecipeError("data.eval", "there are no training rows to hold some out", action="set data.train")
        whole = self.rows("train", formats=formats)
        return SplitRows("eval", whole.sources, whole.formats, whole.selection, held_out=True)

    def _check_files(self, rows: SplitRows, *, if_pinned: bool = False) -> None:
        """Say the hashes of the files in the plan, and compare them with those that the recipe pins.

        Args:
            if_pinned: do neither if it pins none.
        """
        from finetooth_core.data.cache import DataCache
        from finetooth_core.data.pins import check_snapshot, show_files

        pinned = self.recipe.data.snapshot is not None or any(picked.pin is not None for picked in rows.sources)
        if rows.held_out or (if_pinned and not pinned):
            return
        hashes = DataCache().hashes
        show_files(self, rows.sources, hashes)
        if "data.snapshot" not in self.decisions and self.recipe.data.snapshot is not None:
            splits = [split for split in ("train", "eval") if self.has(split)]
            several = [self.rows(split) for split in splits]
            check_snapshot(self, [picked for one in several if not one.held_out for picked in one.sources], hashes)

    def _sources(self, split: str) -> list[PickedSource]:
        setting = f"data.{split}"
        given = getattr(self.recipe.data, split)
        if given is None:
            raise RecipeError(setting, "no data are given", action=f"set {setting} to a file, a hub id or a source")
        if not isinstance(given, list):
            return [self._source(given, setting)]
        return [self._source(item, f"{setting}.{index}") for index, item in enumerate(given)]

    def _source(self, item: Any, setting: str) -> PickedSource:
        from finetooth_core.data.selection import source_choice

        pick: Pick
        item, choice, own = source_choice(item, setting, self.recipe.data)
        if isinstance(item, Mapping):
            pick, registered = item, self.entry("source", item, setting=setting)
            self.decide(setting, registered.full_name, "the recipe says so")
        elif any(item in (r.entry.name, r.full_name) for r in self.catalog.all("source")):
            pick, registered = item, self.entry("source", item, setting=setting)
        else:
            registered, claim = self._claimed("source", item, setting)
            self.decide(setting, registered.full_name, f"{item}: {claim.reason}")
            pick = {"name": registered.full_name, "path": item}
        source: Source = self._build(registered, pick, setting)
        options = self.options_of(registered, pick, setting)
        return PickedSource(setting, registered, options, source, choice, own.sha256, own.format)

    def options_of(self, registered: Registered, pick: Pick, setting: str) -> Mapping[str, Any]:
        """The options of a pick, defaults filled in; JSON-able."""
        named = _renamed(pick, registered.full_name)
        return validate_options(self.catalog, registered.entry.kind, named, setting).model_dump(mode="json")

    def _claimed(self, kind: str, reference: str, setting: str) -> tuple[Registered, Claim]:
        """The entry with the strongest claim on a reference."""
        claims: list[tuple[int, Registered, Claim]] = []
        for registered in self.catalog.all(kind):
            claims_of = getattr(registered.entry, "claims", None)
            claim = claims_of(reference) if claims_of is not None else None
            if claim is not None:
                claims.append((claim.strength, registered, claim))
        strongest = max((strength for strength, _, _ in claims), default=0)
        best = [(registered, claim) for strength, registered, claim in claims if strength == strongest]
        if not best:
            raise unclaimed(self.catalog, kind, reference, setting)
        if len(best) > 1:
            names = " and ".join(sorted(r.full_name for r, _ in best))
            raise RecipeError(setting, f"{names} both claim {reference!r}", action="pick one by name")
        entry = best[0][0].entry
        if isinstance(entry, LoaderEntry) and reference in entry.names:
            self.recipe.model_is_name()
        elif strongest > 1:  # a file by its ending: it is claimed whether it is there or not
            refuse_misspelt(reference, setting)
        return best[0]

    # --- everything else ----------------------------------------------------------------------------------------------

    def open(self, reference: str, changes: Mapping[str, Any] | None = None) -> OpenedModel:
        from finetooth_core.api import Session
        from finetooth_core.opened import open_model
        from finetooth_core.recipe import load

        if self.plugins is None:
            raise PluginError("", f"{reference}: this context cannot open models", action="build it with its plugins")
        plugins = self.plugins
        made = open_model(reference, lambda recipe: Session(load(recipe), plugins, say=self.note, data=False), changes)
        self.opened.append(made)
        return made

    def generator(self, *keys: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.train.seed, *keys)).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest[:16], dtype=np.uint32))

    def note(self, text: str, *, topic: str = "") -> None:
        if (topic or text) not in self._topics:
            self._topics[topic or text] = text
            self.notes.append(text)
            if self.announce is not None:
                self.announce(text)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """Notes told meanwhile are forgotten, and may be told again."""
        topics, notes, announce = dict(self._topics), list(self.notes), self.announce
        self.announce = None
        try:
            yield
        finally:
            self._topics, self.notes, self.announce = topics, notes, announce

    @property
    def told(self) -> list[tuple[str, str]]:
        """Topics and texts of all notes, in order."""
        return list(self._topics.items())


def _renamed(pick: Pick, name: str) -> Pick:
    return name if isinstance(pick, str) else {**pick, "name": name}
