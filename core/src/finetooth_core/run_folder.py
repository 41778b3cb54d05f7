"""What a run folder says of its run: enough to build its engine again, with every choice as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError

ARTIFACT = "artifact"
PLAN = "plan.json"
RECIPE = "recipe.yaml"

_FIXED = {
    "loader": ("model", "loader"),
    "family": ("model", "family"),
    "renderer": ("data", "renderer"),
    "processor": ("data", "processor"),
    "adapter": ("adapter",),
}
"""Where in a recipe the picks stand that decide what the trained weights mean."""


def is_run_folder(path: Path) -> bool:
    """Whether a run has written its recipe and its plan there."""
    return (path / RECIPE).is_file() and (path / PLAN).is_file()


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a run with the picks and options that its plan recorded: a default that has changed since, or an
    `auto` that would now decide otherwise, must not change what the trained weights mean.

    Raises:
        UserError: the folder's plan cannot be read.
        RecipeError: its recipe cannot be read.
    """
    from finetooth_core.recipe import load

    recipe = load(folder / RECIPE).as_dict()
    try:
        plan: Mapping[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        picks, options = plan["picks"], plan["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / PLAN}: cannot be read: {error}", action="the run folder is damaged") from error
    if isinstance(recipe.get("model"), str):
        recipe["model"] = {"name": recipe["model"]}
    for kind, path in _FIXED.items():
        if kind in picks:
            _fix(recipe, path, picks[kind], options.get(kind, {}))
    return recipe


def artifact_of(folder: Path) -> Path:
    """The trained weights of a run, every file checked against the manifest.

    Raises:
        UserError: the run kept none, or a file is damaged.
    """
    from finetooth_core.artifact import verify_folder

    artifact = folder / ARTIFACT
    if not artifact.is_dir():
        raise UserError(f"{folder}: the run kept no artifact", action=f"see {folder / 'result.json'} for how it ended")
    verify_folder(artifact)
    return artifact


def _fix(recipe: dict[str, Any], path: tuple[str, ...], full_name: str, options: Mapping[str, Any]) -> None:
    """Put a pick with all its options in its place; a name that the user gave stays."""
    holder = recipe
    for key in path[:-1]:
        holder = holder.setdefault(key, {})
    given = holder.get(path[-1], "auto")
    name = given if isinstance(given, str) else given["name"]
    if name == "auto":
        source, _, bare = full_name.rpartition(":")
        name = bare if source.endswith(".py") else full_name  # a local file's name depends on where the recipe is
    holder[path[-1]] = {"name": name, **options}
