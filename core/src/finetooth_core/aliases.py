"""Settings under the names that other tools give them: read as ours where they mean exactly one of ours, and told.

A name stands here only if every value it takes elsewhere means the same here, or is refused by the check of our
setting. For names that mean something else, or several things, there is a hint (`HINTS`) and the recipe is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks.errors import RecipeError

from finetooth_core.problems import RecipeProblems, show

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
}
"""Name at the top of a recipe, and the setting it is."""

HINTS: Mapping[str, str] = {
    "test_datasets": "list the files under data.eval",
    "pretraining_dataset": "list the files under data.train, and set method to one that learns from plain text",
    "micro_batch_size": "train.batch_size is all rows of an optimizer step; train.micro_batch_tokens bounds what is "
    "computed at once",
    "per_device_train_batch_size": "train.batch_size is all rows of an optimizer step; train.micro_batch_tokens bounds "
    "what is computed at once",
    "gradient_accumulation_steps": "it follows from train.batch_size and train.micro_batch_tokens; set the former to "
    "the rows of an optimizer step",
    "train_on_inputs": "set method.train_on: all (true) or assistant (false)",
    "roles_to_train": "set method.train_on, give the format train_roles, or mark messages in the data",
    "dataset_prepared_path": "prepared data are kept in the folder that the environment variable FT_CACHE names",
    "chat_template": "set data.renderer",
    "chat_template_jinja": "set data.renderer to one that takes a template",
    "rl": "set method",
    "bf16": "set train.precision: bf16",
    "fp16": "set train.precision: fp16",
    "tf32": "set train.precision",
    "sample_packing": "rows are laid out without padding where the model allows it; see packing in backend",
    "special_tokens": "set model.special_tokens, with model: {name: ...}",
    "tokens": "set model.added_tokens, with model: {name: ...}",
    "added_tokens_overrides": "set model.added_tokens_overrides, with model: {name: ...}",
    "processor_kwargs": "set data.processor: {name: auto, arguments: {...}}",
    "chat_template_kwargs": "give the renderer its arguments: data.renderer: {name: ..., arguments: {...}}",
    "shuffle_merged_datasets": "set train.shuffle",
    "trust_remote_code": "code from a hub is never run; a plugin brings what is missing",
}
"""Names that mean nothing here, or not exactly one thing: what to do instead."""


def read_aliases(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """A recipe in our names.

    Args:
        given: as the user wrote it, overrides applied.

    Returns:
        The recipe, and the path of each setting that had another name.

    Raises:
        RecipeError: a setting is given under both names, or has no place here.
    """
    found = dict(given)
    renamed: dict[str, tuple[str, ...]] = {}
    for name, path in ALIASES.items():
        if name not in given:
            continue
        value = found.pop(name)
        if path in renamed.values():
            other = next(alias for alias, known in renamed.items() if known == path)
            raise RecipeError(name, f"{other} is given too, and both are {'.'.join(path)}", action="keep one of them")
        if name == "val_set_size":
            if value in (0, None):
                continue  # none are held out, as without it
            if not isinstance(value, float):
                raise RecipeError(
                    name, f"a number of rows cannot be held out, only a fraction of them, got {show(value)}",
                    action="write data.eval: {fraction: 0.05}",
                )  # fmt: skip
        _put(found, name, path, value)
        renamed[name] = path
    return found, renamed


def _put(recipe: dict[str, Any], name: str, path: tuple[str, ...], value: Any) -> None:
    """Set a setting that must not be there yet; the mappings on the way are copied, not changed."""
    holder = recipe
    for depth, key in enumerate(path[:-1], start=1):
        below = holder.get(key)
        if below is not None and not isinstance(below, Mapping):
            raise RecipeError(name, f"{'.'.join(path[:depth])} is given too, and is no mapping", action=_keep(path))
        holder[key] = dict(below or {})
        holder = holder[key]
        if key == "eval" and "name" in holder:
            raise RecipeError(name, "data.eval is given too", action="keep one of them")
    if path[-1] in holder:
        raise RecipeError(name, f"{'.'.join(path)} is given too", action=_keep(path))
    holder[path[-1]] = value


def _keep(path: tuple[str, ...]) -> str:
    return f"keep {'.'.join(path)}"


def with_hints(error: RecipeError) -> RecipeError:
    """The error, in which unknown settings that other tools know say what to do instead."""
    problems = error.problems if isinstance(error, RecipeProblems) else (error,)
    for problem in problems:
        if "unknown setting" in problem.problem and problem.setting in HINTS:
            problem.action = HINTS[problem.setting]
    return RecipeProblems(problems) if isinstance(error, RecipeProblems) else error


__all__ = ["ALIASES", "HINTS", "read_aliases", "with_hints"]
