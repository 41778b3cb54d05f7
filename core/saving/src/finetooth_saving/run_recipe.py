"""The recipe of a run with the decisions of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from finetooth_toolbox.cli.streams import warn

from finetooth_saving.run_folder import FIXED, fix_pick, plan_of

OF_TRAINING = ("checkpoint", "export", "profile", "scale")
"""Sections that only affect the course and the end of a run, not the trained weights."""
_tell = cache(warn)
"""Writes a note once."""


def without_training(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for opening a trained model: without measuring, saving or reporting, so that the settings for these are
    not validated again."""
    train = {name: value for name, value in (recipe.get("train") or {}).items() if name != "early_stopping"}
    rest = {name: value for name, value in recipe.items() if name not in OF_TRAINING}
    return {**rest, **({"train": train} if train else {}), "trackers": [], "evaluate": {"evaluators": []}}


def _without_gone(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without plugin files that are not there, since a use may need none of them; a note names them."""
    kept = [(item, Path(item if isinstance(item, str) else item["use"])) for item in recipe.get("plugins") or ()]
    gone = [use for _, use in kept if use.is_absolute() and not use.exists()]
    if not gone:
        return dict(recipe)
    _tell(f"{folder}: {', '.join(map(str, gone))} is not there and was left out (name its new path with --plugins)")
    return {**recipe, "plugins": [item for item, use in kept if use not in gone]}


def with_picks(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run with the picks and options of its plan. A changed default, or another decision of `auto`,
    must not change the meaning of the trained weights. Plugin files that are not there are left out.

    Raises:
        UserError: the folder's plan cannot be read.
    """
    picked, plan = _without_gone(folder, recipe), plan_of(folder)
    if isinstance(picked.get("model"), str):
        picked["model"] = {"name": picked["model"]}
    for kind, path in FIXED.items():
        if kind in plan["picks"]:
            fix_pick(picked, path, plan["picks"][kind], plan["options"].get(kind, {}))
    return picked
