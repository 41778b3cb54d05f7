"""Measures a run or a model with any evaluators on any rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetooth_hooks.context import Catalog
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.plan import Pick
from finetooth_hooks.reports import Evaluation
from finetooth_saving.metric_names import all_distinct
from finetooth_saving.run_folder import run_of
from finetooth_saving.runs.written_models import evaluators_of

from finetooth_core.models.opened_model import ModelSession, open_model
from finetooth_core.plugins.builders import options_model
from finetooth_core.settings.recipe import pick_name
from finetooth_core.settings.run_recipe import recipe_of

EVERY = 10**9
"""More answers than any evaluator gives."""


def evaluate(
    reference: str,
    session: Callable[[Mapping[str, Any]], ModelSession],
    evaluators: Sequence[Pick],
    data: Pick | None,
    *,
    answers: bool = False,
) -> tuple[Evaluation, ...]:
    """Measure a run or a model; see `finetooth_hooks.CommandContext.evaluate`.

    Args:
        session: makes one for a recipe, without training data.
    """
    run = run_of(reference)
    recipe: Mapping[str, Any] = {} if run is None else recipe_of(run)
    section = dict(recipe.get("data") or {})
    if data is not None:
        section["eval"] = data
    opened = open_model(reference, session, {"data": section})
    catalog = opened.context.catalog
    named = [catalog.get("evaluator", pick_name(pick, "evaluate"), setting="evaluate").entry for pick in evaluators]
    if not section.get("eval") and not (named and all(getattr(entry, "brings_rows", False) for entry in named)):
        raise RecipeError("data.eval", f"{reference} needs rows to be measured on", action="give --data FILE")
    picks = list(evaluators) or ([] if run is None else evaluators_of(run, {**recipe, "data": section}))
    picks = picks or [registered.full_name for registered in catalog.all("evaluator") if registered.entry.default]
    built = []
    for index, pick in enumerate(picks):
        setting = f"evaluate.evaluators.{index}"
        full_pick = _keeping_answers(catalog, pick, setting) if answers else pick
        built.append(opened.context.build("evaluator", full_pick, setting=setting))
        built[-1].prepare()  # all rows are read before weights are
    return all_distinct(evaluator.evaluate(opened.engine, 0) for evaluator in built)


def _keeping_answers(catalog: Catalog, pick: Pick, setting: str) -> Pick:
    """The pick of an evaluator that keeps every answer, if it keeps some."""
    name = pick_name(pick, setting)
    entry = catalog.get("evaluator", name, setting=setting).entry
    if "samples" not in options_model(entry).model_fields:
        return pick
    return {"samples": EVERY, **({"name": name} if isinstance(pick, str) else pick)}
