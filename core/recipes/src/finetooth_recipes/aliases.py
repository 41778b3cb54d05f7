"""Settings with the names of other tools: they become the one setting here with the same meaning, with a note.

A name is listed only if each of its values elsewhere means the same here, or the check of the setting refuses it. A
recipe with a name of another or several meanings is refused with a hint (`names_elsewhere`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks.errors import RecipeError

from finetooth_recipes.problems import show

ALIASES: Mapping[str, tuple[str, ...]] = {
    "base_model": ("model",),
    "sequence_len": ("train", "max_length"),
    "excess_length_strategy": ("train", "excess_length"),
    "num_epochs": ("train", "epochs"),
    "num_train_epochs": ("train", "epochs"),
    "output_dir": ("output",),
    "val_set_size": ("data", "eval", "fraction"),
    "dataset_num_proc": ("data", "workers"),
    "dataset_processes": ("data", "workers"),
    "eval_steps": ("evaluate", "every"),
    "save_steps": ("checkpoint", "every"),
    "lr_scheduler": ("schedule",),
    "diloco_inner_steps": ("scale", "strategy", "inner_steps"),
    "diloco_outer_lr": ("scale", "strategy", "outer_lr"),
    "diloco_outer_momentum": ("scale", "strategy", "outer_momentum"),
    "diloco_num_islands": ("scale", "strategy", "num_islands"),
    "diloco_pseudo_gradient_dtype": ("scale", "strategy", "pseudo_gradient_dtype"),
}
"""The setting of each name at the top of a recipe."""


def read_aliases(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """A recipe with the names of finetooth.

    Args:
        recipe: as the user wrote it, overrides applied.

    Returns:
        The recipe, and the path of each renamed setting.

    Raises:
        RecipeError: a setting is given under both names, or its section cannot hold it.
    """
    settings = dict(recipe)
    renamed: dict[str, tuple[str, ...]] = {}
    for name, path in ALIASES.items():
        if name not in recipe:
            continue
        value = settings.pop(name)
        if path in renamed.values():
            other = next(alias for alias, known in renamed.items() if known == path)
            raise RecipeError(name, f"{other} is given too, and both are {'.'.join(path)}", action="keep one of them")
        if name == "val_set_size":
            if value in (0, None):
                continue  # no rows are held out, as by default
            if not isinstance(value, float):
                raise RecipeError(
                    name, f"a number of rows cannot be held out, only a fraction of them, got {show(value)}",
                    action="write data.eval: {fraction: 0.05}",
                )  # fmt: skip
        _put(settings, name, path, value)
        renamed[name] = path
    return settings, renamed


def _put(recipe: dict[str, Any], name: str, path: tuple[str, ...], value: Any) -> None:
    """Set a setting that must be unset; the mappings on its path are copied, not changed."""
    holder = recipe
    for depth, key in enumerate(path[:-1], start=1):
        below = holder.get(key)
        if below is not None and not isinstance(below, Mapping):
            raise RecipeError(
                name, f"the recipe also sets {'.'.join(path[:depth])}, and not to a mapping", action=_keep(path)
            )
        holder[key] = dict(below or {})
        holder = holder[key]
        if key == "eval" and "name" in holder:
            raise RecipeError(name, "data.eval is given too", action="keep one of them")
    if path[-1] in holder:
        raise RecipeError(name, f"{'.'.join(path)} is given too", action=_keep(path))
    holder[path[-1]] = value


def _keep(path: tuple[str, ...]) -> str:
    return f"keep {'.'.join(path)}"


__all__ = ["ALIASES", "read_aliases"]
