"""The recipe of a run, as its plan decided it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetooth_saving.run_folder import FIXED, RECIPE, fix_pick, plan_of

from finetooth_core.recipe import load


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a run with the picks and options that its plan recorded: a default that has changed since, or an
    `auto` that would now decide otherwise, must not change what the trained weights mean.

    Raises:
        UserError: the folder's plan cannot be read.
        RecipeError: its recipe cannot be read.
    """
    recipe = load(folder / RECIPE).as_dict()
    plan = plan_of(folder)
    if isinstance(recipe.get("model"), str):
        recipe["model"] = {"name": recipe["model"]}
    for kind, path in FIXED.items():
        if kind in plan["picks"]:
            fix_pick(recipe, path, plan["picks"][kind], plan["options"].get(kind, {}))
    return recipe
