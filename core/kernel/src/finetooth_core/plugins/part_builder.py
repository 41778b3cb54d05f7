"""Builds a pick: finds the entry, checks its options, and calls its builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.context import Context
from finetooth_hooks.entries import Loss
from finetooth_hooks.errors import PluginError, RecipeError
from finetooth_hooks.options import Options
from finetooth_hooks.plan import Pick
from finetooth_recipes.recipe_picks import AUTO
from finetooth_toolbox.decisions import Decisions

from finetooth_core.plugins.builders import built
from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_core.plugins.collector import paused_collector
from finetooth_core.settings.recipe import validate_options


@dataclass(frozen=True)
class BuiltPart:
    """The result of building a pick.

    Attributes:
        registered: the entry.
        part: the builder's result.
        options: checked, defaults filled in.
        losses: losses that its builder requested, in order, each with its setting.
    """

    registered: Registered
    part: Any
    options: Options
    losses: tuple[tuple[str, LossSpec], ...] = ()

    @property
    def plain_options(self) -> Mapping[str, Any]:
        """Options, JSON-able."""
        return self.options.model_dump(mode="json")


class Builder:
    """Builds the picks of recipes.

    Args:
        catalog: all entries.
        log: receives decisions.
        context: the builders' second argument, after their options.
    """

    def __init__(self, catalog: Catalog, log: Decisions, context: Context) -> None:
        self.catalog, self.log, self.context = catalog, log, context
        self.used: list[Registered] = []  # built entries, in order
        self._losses: list[tuple[str, LossSpec]] = []  # of the running builders, in order

    def entry(self, kind: str, pick: Pick, *, setting: str = "", framework: str = "") -> Registered:
        """The entry of a pick.

        Args:
            framework: see `Catalog.get`.
        """
        name = pick if isinstance(pick, str) else pick.get("name")
        if not isinstance(name, str):
            raise RecipeError(setting, f"the mapping has no 'name' that picks a {kind}", action="add name: NAME")
        return self.catalog.get(kind, name, setting=setting, framework=framework)

    def build(self, kind: str, pick: Pick, *, setting: str = "", framework: str = "") -> BuiltPart:
        """Build the entry of a pick without recording it.

        Args:
            framework: see `Catalog.get`.
        """
        return self.built(self.entry(kind, pick, setting=setting, framework=framework), pick, setting)

    def section(self, kind: str, pick: Pick, setting: str, *, framework: str = "") -> BuiltPart:
        """Build a single-choice section of the recipe and record the pick for the plan; `auto` uses the default entry.

        Args:
            framework: only entries for it are considered; empty is all.
        """
        if is_auto(pick):
            registered = self.catalog.default(kind, setting=setting, framework=framework)
            self.log.decide(setting, registered.full_name, f"the default {kind}")
        else:
            registered = self.entry(kind, pick, setting=setting, framework=framework)
            self.log.decide(setting, registered.full_name, "the recipe says so")
        return self.recorded(registered, renamed(pick, registered.full_name), setting)

    def recorded(self, registered: Registered, pick: Pick, setting: str) -> BuiltPart:
        """Build an entry and record it as the one of its kind."""
        kind = registered.entry.kind
        self.log.pick(kind, registered.full_name)
        return self.built(registered, pick, setting, kind)

    @paused_collector()  # the first build of an entry imports its module
    def built(self, registered: Registered, pick: Pick, setting: str, record: str = "") -> BuiltPart:
        """Call the builder of an entry.

        Args:
            record: the kind under which its options are recorded before it is called; empty is nowhere.

        Raises:
            RecipeError: the options in `pick` are wrong.
        """
        options = validate_options(self.catalog, registered.entry.kind, renamed(pick, registered.full_name), setting)
        if record:
            self.log.pick(record, registered.full_name, options.model_dump(mode="json"))
        before = len(self._losses)
        part = built(registered, options, self.context)
        self.used.append(registered)
        return BuiltPart(registered, part, options, tuple(self._losses[before:]))

    def loss(self, pick: Pick, *, setting: str = "") -> LossSpec:
        """A loss with its entry's declarations. It becomes part of the object whose builder requests it."""
        registered = self.entry("loss", pick, setting=setting)
        entry = registered.entry
        if not isinstance(entry, Loss):
            raise PluginError(registered.distribution, f"{entry.name} is not declared as a Loss")
        fn = self.built(registered, pick, setting).part
        spec = LossSpec(registered.full_name, fn, entry.needs, entry.together, entry.proportional_to)
        self._losses.append((setting or "method", spec))
        return spec


def is_auto(pick: Pick) -> bool:
    """Whether a pick leaves the choice open; `{name: auto, ...}` gives options only."""
    return AUTO in (pick, pick if isinstance(pick, str) else pick.get("name"))


def renamed(pick: Pick, name: str) -> Pick:
    """The pick with the full name of its entry."""
    return name if isinstance(pick, str) else {**pick, "name": name}
