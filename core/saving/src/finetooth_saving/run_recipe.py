"""The recipe of a run, as its plan decided it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_saving.run_folder import FIXED, fix_pick, plan_of

OF_TRAINING = ("checkpoint", "export", "profile", "scale")
"""Sections that say what happens while a run trains and at its end, and nothing about what it trained."""


def without_training(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for opening what its run trained: nothing is measured, saved or reported on the way, and the settings
    that say when to do so are not judged a second time."""
    train = {name: value for name, value in (recipe.get("train") or {}).items() if name != "early_stopping"}
    rest = {name: value for name, value in recipe.items() if name not in OF_TRAINING}
    return {**rest, **({"train": train} if train else {}), "trackers": [], "evaluate": {"evaluators": []}}


def with_picks(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run with the picks and options that its plan recorded: a default that has changed since, or an
    `auto` that would now decide otherwise, must not change what the trained weights mean.

    Raises:
        UserError: the folder's plan cannot be read.
    """
    picked, plan = dict(recipe), plan_of(folder)
    if isinstance(picked.get("model"), str):
        picked["model"] = {"name": picked["model"]}
    for kind, path in FIXED.items():
        if kind in plan["picks"]:
            fix_pick(picked, path, plan["picks"][kind], plan["options"].get(kind, {}))
    return picked
