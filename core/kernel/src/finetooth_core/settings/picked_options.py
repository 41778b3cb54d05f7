"""Checks the options of all picks of a recipe before building, to report all errors at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_hooks.errors import FinetoothError, RecipeError
from finetooth_recipes.problems import raise_problems
from finetooth_recipes.recipe_picks import AUTO

from finetooth_core.plugins.catalog import Catalog
from finetooth_core.settings.recipe import Recipe, validate_options

SECTIONS = ("backend", "hardware", "adapter", "optimizer", "schedule")


def check_picked_options(recipe: Recipe, catalog: Catalog, framework: str, *, data: bool) -> None:
    """Check all picks with options. Building reports missing or broken entries later.

    Args:
        framework: selects entries; see `framework_of`.
        data: False if neither a method nor its data are built.

    Raises:
        RecipeError: options are wrong, one line each.
    """
    errors: list[RecipeError] = []
    for kind, setting, pick in _picks(recipe, data=data):
        try:
            default = pick.get("name") == AUTO
            name = catalog.default(kind, setting=setting, framework=framework).full_name if default else pick["name"]
            name = catalog.get(kind, name, setting=setting, framework=framework).full_name
            validate_options(catalog, kind, {**pick, "name": name}, setting)
        except RecipeError as error:
            errors.append(error)
        except (FinetoothError, KeyError):
            continue
    raise_problems(errors)


def _picks(recipe: Recipe, *, data: bool) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Kind, setting and pick of each part with options."""
    picks: list[tuple[str, str, Any]] = [(kind, kind, getattr(recipe, kind)) for kind in SECTIONS]
    picks += [("quantizer", "quantization", recipe.quantization)]
    picks += [(kind, f"scale.{kind}", getattr(recipe.scale, kind)) for kind in ("strategy", "launcher")]
    if data:
        picks.append(("method", "method", recipe.method))
        picks += [(kind, f"data.{kind}", getattr(recipe.data, kind)) for kind in ("format", "renderer", "processor")]
        for kind, setting, listed in (
            ("evaluator", "evaluate.evaluators", recipe.evaluate.evaluators),
            ("tracker", "trackers", recipe.trackers),
            ("exporter", "export", recipe.export),
            ("gate", "checkpoint.gates", recipe.checkpoint.gates),  # built only where checkpoints are written
        ):
            picks += [(kind, f"{setting}.{place}", pick) for place, pick in enumerate(listed) if listed != AUTO]
    for kind, setting, pick in picks:
        if isinstance(pick, Mapping) and not (pick.get("name") == AUTO and kind in ("format", "renderer", "processor")):
            yield kind, setting, pick
