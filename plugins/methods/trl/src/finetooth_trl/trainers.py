"""Finds the trainer of a recipe, and checks the arguments of its configuration."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from finetooth_hooks.errors import RecipeError, install_command
from finetooth_toolbox.text.nearest import nearest

OURS: Mapping[str, str] = {
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "optim": "optimizer",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "schedule.warmup_steps",
    "warmup_ratio": "schedule.warmup_ratio",
    "max_grad_norm": "train.max_grad_norm",
    "neftune_noise_alpha": "train.embedding_noise",
    "shuffle_dataset": "train.shuffle",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "per_device_train_batch_size": "train.batch_size and method.portion",
    "gradient_accumulation_steps": "train.batch_size and method.portion",
    "seed": "train.seed",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "output_dir": "output",
    "report_to": "trackers",
    "logging_steps": "trackers",
    "logging_strategy": "trackers",
    "save_strategy": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "eval_strategy": "evaluate.every",
    "eval_steps": "evaluate.every",
    "push_to_hub": "ft push",
    "resume_from_checkpoint": "ft resume",
    "deepspeed": "the recipe, which runs on one device",
    "fsdp": "the recipe, which runs on one device",
    "reward_weights": "method.rewards, each with its weight",
}
"""Fields of TRL's configurations that the recipe sets, with these settings."""


REFUSED: Mapping[str, str] = {
    "RewardTrainer": "it trains a head that this engine's model does not have; take the method reward",
    "TPOTrainer": "it needs a third answer, `reference`, which no shape of rows has; take the method dpo",
    "AsyncGRPOTrainer": "it drives a vLLM server of its own; take the method grpo with the sampler vllm",
    "AsyncDistillationTrainer": "it drives a vLLM server of its own; take the method distill",
    "ServerDistillationTrainer": "its teacher answers at a server; take the method distill",
}
"""Trainers that cannot run here, with the reason and an alternative."""


def trainer_class(name: str) -> type[Any]:
    """The class of a trainer.

    Raises:
        RecipeError: TRL has no trainer of that name, or it cannot be imported.
    """
    import trl

    module: Any = trl
    path, _, last = name.removeprefix("trl.").rpartition(".")
    if path:
        try:
            module = importlib.import_module(f"trl.{path}")
        except ImportError as error:
            raise RecipeError(
                "method.trainer",
                f"trl.{path} cannot be imported: {error}",
                action=f"name another one, or install what it lacks: {install_command('PACKAGE')}",
            ) from None
    known = [member for member in dir(module) if member.endswith("Trainer")]
    wanted = last if last in known else f"{last.upper()}Trainer"
    trainer = next(
        (member for member in known if member.lower() in (last.lower(), wanted.lower(), f"{last}trainer".lower())), None
    )
    if trainer is None:
        near = nearest(wanted, known)
        raise RecipeError(
            "method.trainer",
            f"TRL has no trainer {name!r}" + (f"; did you mean {near}?" if near else ""),
            action=f"name one of {', '.join(known)}" if known else "name one by its module",
        )
    if trainer in REFUSED:
        why, action = REFUSED[trainer].rsplit("; ", 1)
        raise RecipeError("method.trainer", f"{trainer} does not run here: {why}", action=action)
    return type_of(module, trainer)


def type_of(module: Any, name: str) -> type[Any]:
    """A class of a module that imports its content lazily."""
    cls: type[Any] = vars(module).get(name) or importlib.import_module(module.__name__).__getattr__(name)
    return cls


def config_class(trainer: type[Any]) -> type[Any]:
    """The configuration class of a trainer: that of the same name, in the trainer's package.

    Raises:
        RecipeError: the package has no such class.
    """
    name = trainer.__name__.removesuffix("Trainer") + "Config"
    parts = trainer.__module__.split(".")
    for stop in range(len(parts), 0, -1):
        module = importlib.import_module(".".join(parts[:stop]))
        if name in dir(module):
            return type_of(module, name)
    raise RecipeError("method.trainer", f"{trainer.__name__} has no {name}", action="name another trainer")


IN_ORDER: Mapping[str, Any] = {"shuffle_dataset": False, "train_sampling_strategy": "sequential"}
"""Fields of a configuration with the values that keep the order of the rows."""


def check_order(trainer: type[Any], *, shuffle: bool) -> None:
    """Check that a trainer can keep the order of the rows, if the recipe demands it.

    Raises:
        RecipeError: the trainer has no setting for the order.
    """
    fields = {field.name for field in dataclasses.fields(config_class(trainer))}
    if not shuffle and not fields & IN_ORDER.keys():
        raise RecipeError("train.shuffle", f"{trainer.__name__} shuffles its rows", action="set it to true")


def takes(trainer: type[Any], name: str) -> bool:
    """Whether a trainer's constructor has an argument of that name."""
    return name in inspect.signature(trainer.__init__).parameters


def check_arguments(trainer: type[Any], arguments: Mapping[str, Any], *, judged: bool, taught: bool = False) -> None:
    """Check the arguments for a TRL trainer, and whether it uses rewards or a teacher.

    Args:
        judged: the recipe names rewards.
        taught: the recipe names a teacher.

    Raises:
        RecipeError: the recipe sets an argument itself, or the configuration does not have it; rewards or a teacher are
            given for a trainer that does not use them, or missing for one that needs them.
    """
    fields = {field.name for field in dataclasses.fields(config_class(trainer))}
    for name in arguments:
        if name in OURS:
            raise RecipeError(
                f"method.arguments.{name}", "the recipe says that itself", action=f"leave it out, and set {OURS[name]}"
            )
        if name not in fields:
            near = nearest(name, sorted(fields - set(OURS)))
            raise RecipeError(
                f"method.arguments.{name}",
                f"{config_class(trainer).__name__} has no such field" + (f"; did you mean {near}?" if near else ""),
                action="see TRL's documentation of it",
            )
    if takes(trainer, "reward_funcs") != judged:
        problem = f"{trainer.__name__} takes none" if judged else f"{trainer.__name__} needs at least one"
        raise RecipeError("method.rewards", problem, action="ft plugins list --kind reward shows them")
    if takes(trainer, "teacher_model") != taught:
        problem = f"{trainer.__name__} takes none" if taught else f"{trainer.__name__} needs one"
        raise RecipeError("method.teacher", problem, action="leave it out" if taught else "name a folder or a hub id")


__all__ = ["OURS", "REFUSED", "check_arguments", "config_class", "takes", "trainer_class"]
