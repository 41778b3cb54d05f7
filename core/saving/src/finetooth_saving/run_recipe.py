"""The recipe of a run with the decisions of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_saving.run_folder import FIXED, fix_pick, plan_of

OF_TRAINING = ("checkpoint", "export", "profile", "scale")
"""Sections that only affect the course and the end of a run, not the trained weights."""


def without_training(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for opening a trained model: without measuring, saving or reporting, so that the settings for these are
    not validated again."""
    train = {name: value for name, value in (recipe.get("train") or {}).items() if name != "early_stopping"}
    rest = {name: value for name, value in recipe.items() if name not in OF_TRAINING}
    return {**rest, **({"train": train} if train else {}), "trackers": [], "evaluate": {"evaluators": []}}


def with_picks(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run with the picks and options of its plan. A changed default, or another decision of `auto`,
    must not change the meaning of the trained weights.

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
