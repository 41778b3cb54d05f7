"""The recipe of a run, as its plan decided it."""

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
    """Say once which Python of a run folder was not run."""
    line = f"{folder}: {', '.join(foreign)} is named by no run of this machine and was not run ({CONSENT})"
    if foreign and line not in _TOLD:
        _TOLD.add(line)
        warn(line)


_TOLD: set[str] = set()


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a run with the picks and options that its plan recorded; Python that it names and no run of this
    machine has named is left out, see `own_python`.

    Raises:
        UserError: the folder's plan cannot be read.
        RecipeError: its recipe cannot be read.
    """
    recipe, foreign = without_foreign(load(folder / RECIPE).as_dict(), folder)
    tell_not_run(folder, foreign)
    return with_picks(folder, recipe)
