"""The recipe of a run with the decisions of its plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetooth_saving.run_folder import RECIPE
from finetooth_saving.run_recipe import with_picks
from finetooth_toolbox.cli.streams import warn
from finetooth_toolbox.files.own_python import CONSENT, without_foreign

from finetooth_core.settings.recipe import load


def tell_not_run(folder: Path, foreign: Sequence[str]) -> None:
    """Report once which Python files of a run folder were not run."""
    line = f"{folder}: {', '.join(foreign)} is named by no run of this machine and was not run ({CONSENT})"
    if foreign and line not in _TOLD:
        _TOLD.add(line)
        warn(line)


_TOLD: set[str] = set()


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a run with the picks and options of its plan, without Python files that no run on this machine has
    named; see `own_python`.

    Raises:
        UserError: the folder's plan cannot be read.
        RecipeError: its recipe cannot be read.
    """
    recipe, foreign = without_foreign(load(folder / RECIPE).as_dict(), folder)
    tell_not_run(folder, foreign)
    return with_picks(folder, recipe)
