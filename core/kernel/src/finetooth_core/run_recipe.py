"""The recipe of a run, as its plan decided it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetooth_saving.run_folder import RECIPE
from finetooth_saving.run_recipe import with_picks

from finetooth_core.recipe import load


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a run with the picks and options that its plan recorded.

    Raises:
        UserError: the folder's plan cannot be read.
        RecipeError: its recipe cannot be read.
    """
    return with_picks(folder, load(folder / RECIPE).as_dict())
