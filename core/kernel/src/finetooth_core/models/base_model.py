"""The model that a recipe names, made ready step by step: loader, description, facts, tokenizer, and the renderer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from finetooth_hooks.entries import Family
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Loader, ModelFacts, ModelInfo, Tokenizer
from finetooth_hooks.renderers import shows
from finetooth_recipes.recipe_picks import AUTO, pinned
from finetooth_toolbox.files.contents import FileContents

from finetooth_core.models.adapter_folder import from_adapter
from finetooth_core.models.stages import FromRun, ParentOf, from_run
from finetooth_core.models.vocabulary import ChangedTokens, text_config
from finetooth_core.plugins.builders import derived
from finetooth_core.plugins.catalog import Registered
from finetooth_core.plugins.collector import paused_collector
from finetooth_core.plugins.part_builder import Builder, BuiltPart
from finetooth_core.settings.claims import claimed
from finetooth_core.settings.recipe import Recipe


@dataclass(frozen=True)
class BaseModel:
    """The model that a recipe names; no weights are read.

    Attributes:
        loader: reads it, with the tokens that the recipe changes.
        info: the model, described.
        facts: from its family.
        tokenizer: its own, with the tokens that the recipe changes; None if the model is only sketched.
        entries: of loader and family, with options from the recipe or a run.
        run: the run that trained it; None if it comes from elsewhere.
    """

    loader: Loader
    info: ModelInfo
    facts: ModelFacts
    tokenizer: Tokenizer | None
    entries: Mapping[str, tuple[Registered, Mapping[str, Any]]]
    run: FromRun | None = None


@paused_collector()  # may import what reads models
def base_model(
    recipe: Recipe, builder: Builder, framework: Callable[[], str], parent_of: ParentOf, *, sketched: bool = False
) -> BaseModel:
    """Everything about the model of a recipe, in this order: loader, description, facts of the family, and tokenizer.

    Args:
        framework: of the loader.
        parent_of: makes the parts of a run, if the model is one.
        sketched: reads only its config; see `Loader.sketch`.

    Raises:
        UserError: no loader knows it, or it cannot be read.
    """
    name = recipe.model.name
    run = from_run(recipe, builder, framework, parent_of)
    trained = run or (from_adapter(recipe, builder, parent_of) if recipe.model.loader == AUTO else None)
    own: Loader
    if trained is not None:
        own, loading = trained, trained.loading
    else:
        built = _own_loader(recipe, builder, framework())
        own, loading = built.part, (built.registered, built.plain_options)
    changes = recipe.model.token_changes()
    loader = ChangedTokens(own, changes) if changes else own
    with pinned("model.loader", recipe.model.loader):
        described = loader.sketch(name) if sketched else loader.describe(name)
    info = replace(described, loader=loading[0].full_name)
    if not info.contents and info.files:
        info = replace(info, contents=FileContents({path.name: path.absolute() for path in info.files}))
    family, facts = _facts(recipe, builder, info, loader)
    if "modules" in own.capabilities:
        facts = replace(facts, modules=cache(partial(own.modules, name)))
    tokenizer = None if sketched else derived(loader.tokenizer(name), "tokenizer", loading[0])
    return BaseModel(loader, info, facts, tokenizer, {"loader": loading, "family": family}, run)


def _own_loader(recipe: Recipe, builder: Builder, framework: str) -> BuiltPart:
    """The loader that the recipe picks, or the one that claims `model`."""
    model = recipe.model
    if model.loader != AUTO:
        return builder.section("loader", model.loader, "model.loader", framework=framework)
    registered, claim = claimed(recipe, builder.catalog, "loader", "model", model.name, framework)
    builder.log.decide("model.loader", registered.full_name, claim.reason)
    return builder.recorded(registered, registered.full_name, "model.loader")


def _facts(
    recipe: Recipe, builder: Builder, info: ModelInfo, loader: Loader
) -> tuple[tuple[Registered, Mapping[str, Any]], ModelFacts]:
    """The family's entry, options and facts, including tokens that the recipe adds."""
    if not isinstance(loader, ChangedTokens):
        built = _family(recipe, builder, info.model_type)
        return (built.registered, built.plain_options), built.part.facts(info.config)
    built = _family(recipe, builder, info.model_type)
    facts = built.part.facts(loader.config(recipe.model.name))  # an enlarged vocabulary says nothing of the family
    new = loader.new_tokens(recipe.model.name)
    rows = int(text_config(info.config)["vocab_size"])
    if new:
        begin = "their embeddings begin as the mean of the others"
        builder.log.decide("model.added_tokens", len(new), f"ids {new[0]} to {new[-1]}; {begin}")
    return (built.registered, built.plain_options), replace(facts, new_tokens=new, vocab_size=rows)


def _family(recipe: Recipe, builder: Builder, kind: str) -> BuiltPart:
    """The family that the recipe picks, or the one that knows the model's type.

    Args:
        kind: the model's type, as its config says it.
    """
    if recipe.model.family != AUTO:
        return builder.section("family", recipe.model.family, "model.family")
    families = builder.catalog.all("family")
    matching = [r for r in families if isinstance(r.entry, Family) and kind in r.entry.model_types]
    if len(matching) > 1:
        names = ", ".join(r.full_name for r in matching)
        raise RecipeError("model.family", f"several families know model type {kind!r}: {names}", action="pick one")
    registered = matching[0] if matching else builder.catalog.default("family", setting="model.family")
    unknown = f"no family names model type {kind!r}; this one reads what it needs from the model"
    builder.log.decide("model.family", registered.full_name, f"model type {kind!r}" if matching else unknown)
    return builder.recorded(registered, registered.full_name, "model.family")


def renderer_of(recipe: Recipe, builder: Builder, model: BaseModel) -> BuiltPart:
    """The recipe's renderer; else that of the run that trained the model, which knows no other markup; else the one
    that recognises the model's template; else the renderer of the model's family."""
    pick: Pick = recipe.data.renderer
    setting = "data.renderer"
    if pick != AUTO:
        return builder.section("renderer", pick, setting)
    if model.run is not None:
        spoken = model.run.parent.renderer_built
        registered, reason = spoken.registered, f"the renderer of run {recipe.model.name}"
        pick = {"name": registered.full_name, **spoken.plain_options}
    else:
        marks = {r.full_name: getattr(r.entry, "marks", {}) for r in builder.catalog.all("renderer")}
        shown = [name for name, of in marks.items() if shows(of.get(model.info.model_type), model.tokenizer)]
        pick, owner = (shown[0], "chat template") if len(shown) == 1 else (model.facts.renderer, "family")
        registered, reason = builder.entry("renderer", pick, setting=setting), f"the renderer of the model's {owner}"
    builder.log.decide(setting, registered.full_name, reason)
    return builder.recorded(registered, pick, setting)
