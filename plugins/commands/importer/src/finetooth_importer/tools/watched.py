"""When a run is measured and saved, when it ends early, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from typing import Any

from finetooth_importer.account import Account, number

TRACKERS = ("wandb", "mlflow", "trackio", "tensorboard")
"""Trackers that have the same name here."""

SHOWN = "a few answers of a step, as a table"


NAMED = ("wandb", "mlflow", "trackio")
"""Those of them to which a run's name can be given."""


def saving(account: Account) -> None:
    """When checkpoints are made and rows held out are measured."""
    steps = account.get("save_steps")
    strategy = account.get("save_strategy", "steps")
    if strategy == "epoch":
        account.take("save_strategy", "checkpoint.every", value="epoch")
        account.passes("save_steps", "save_strategy is epoch")
    elif strategy in ("no", False):
        account.passes("save_strategy", "only the end is saved, as always")
        account.passes("save_steps", "save_strategy says `no`")
    elif strategy == "best":
        account.passes("save_steps", "save_strategy is best")
    elif steps is not None:
        account.take("save_steps", "checkpoint.every", lambda value: often(account, value))
        account.covered("save_strategy", "checkpoint.every")
    else:
        account.passes("save_strategy", "save_steps sets the interval")
    account.take("save_total_limit", "checkpoint.keep_last")
    strategy = account.get("eval_strategy", account.get("evaluation_strategy", "steps"))
    if strategy == "epoch":
        account.set("evaluate.every", "epoch")
    if strategy == "steps" and account.has("eval_steps"):
        account.take("eval_steps", "evaluate.every", lambda value: often(account, value))
    account.passes("eval_steps", f"the evaluation strategy is {strategy}")
    for key in ("eval_strategy", "evaluation_strategy"):
        account.covered(key, "evaluate.every")
    metric = "eval/" + str(account.get("metric_for_best_model", "loss")).removeprefix("eval_")
    if account.get("save_strategy") == "best":
        account.take("save_strategy", "checkpoint.keep_best", value={"n": 1, "metric": metric})
        account.set("checkpoint.every", account.recipe.get("evaluate", {}).get("every", "epoch"))
        account.covered("metric_for_best_model", "checkpoint.keep_best")
    if account.get("load_best_model_at_end") and account.recipe.get("checkpoint", {}).get("every"):
        account.take("load_best_model_at_end", "checkpoint.select_on", value=metric)
        account.covered("metric_for_best_model", "checkpoint.select_on")
    early_stopping(account, "early_stopping_patience")
    account.passes("load_best_model_at_end", "no checkpoints are made between")
    account.passes("metric_for_best_model", "the last step is kept")
    account.passes("greater_is_better", "the metric's name decides which direction is better")


def often(account: Account, value: Any) -> int | str:
    """A number of steps; below 1 it is a share of the run, whose length must be in the recipe already."""
    count = number(value)
    if count >= 1:
        return int(count)
    train = account.recipe.get("train", {})
    if train.get("max_steps"):
        return max(1, ceil(int(train["max_steps"]) * float(count)))
    return epochs(count * (train.get("epochs") or 1))


def epochs(count: float) -> str:
    """So many passes over the rows, as a recipe says how often something happens."""
    return "epoch" if count == 1 else f"{floor(count * 1e6) / 1e6:.6f}".rstrip("0").rstrip(".") + " epochs"


def records(account: Account) -> None:
    """Where a run is written, and who is told."""
    account.take("output_dir", "output")
    tracker_names = account.get("report_to")
    names = [tracker_names] if isinstance(tracker_names, str) else list(tracker_names or [])
    known = [name for name in TRACKERS if name in names]
    others = sorted({"comet_ml", "swanlab", "all", "clearml", "neptune", "dvclive"} & set(names))
    if known:
        follow(account, *known)
        left = f"no tracker {', '.join(others)} here; ft plugins new --kind tracker begins one" if others else ""
        account.covered("report_to", "trackers", left)
    elif others:
        account.refuse("report_to", "no tracker of that name here; metrics are in metrics.jsonl of the run folder")
    if known and account.get("log_completions"):
        shown = {"samples": count} if (count := account.whole("num_completions_to_print", 0)) > 0 else {}
        follow(account, *known, samples_every=max(1, account.whole("logging_steps", 1)), **shown)
        for key in ("log_completions", "num_completions_to_print"):
            account.covered(key, "trackers", SHOWN)
    account.passes("report_to", "metrics are in metrics.jsonl of the run folder")
    account.passes("logging_steps", "every step is written to metrics.jsonl")
    account.passes("logging_strategy", "every step is written to metrics.jsonl")
    account.passes("logging_first_step", "every step is written to metrics.jsonl")
    account.passes("plot_loss", "the console shows the curve")
    account.passes("overwrite_output_dir", "a run never overwrites another")
    named = [name for name in known if name in NAMED]
    if named and account.has("run_name"):
        follow(account, *named, run_name=str(account.get("run_name")))
        account.covered("run_name", "trackers")
    account.passes("run_name", "the folder identifies a run")
    if "trackio" in known:
        tracked(account, "trackio", {"project": "project", "trackio_space_id": "space"})
    for key in ("project", "trackio_space_id"):
        account.passes(key, "the configuration sets no tracker trackio")
    account.refuse("resume_from_checkpoint", "ft resume RUN continues a run")
    account.refuse("auto_resume_from_checkpoints", "ft resume RUN continues a run")
    account.passes("save_only_model", "a checkpoint holds what a run needs to resume")
    account.passes("save_safetensors", "weights are always safetensors")
    for key in ("logging_dir", "include_num_input_tokens_seen", "disable_tqdm", "remove_unused_columns", "log_level"):
        account.passes(key, "finetooth has no such setting")


def follow(account: Account, *names: str, **options: Any) -> None:
    """Set trackers in addition to those that every run has.

    Args:
        options: of the one that is named, or of all that are named.
    """
    listed = account.recipe.setdefault("trackers", ["console", "jsonl"])
    for name in names:
        there = next(
            (
                tracker
                for tracker in listed
                if tracker == name or (isinstance(tracker, dict) and tracker["name"] == name)
            ),
            None,
        )
        made = {"name": name, **(there if isinstance(there, dict) else {}), **options}
        if there is not None:
            listed[listed.index(there)] = made if len(made) > 1 else name
        else:
            listed.append(made if len(made) > 1 else name)


def tracked(account: Account, tracker: str, keys: Mapping[str, str]) -> None:
    """Keys of the tool that are options of a tracker, by the option's name."""
    for key, option in keys.items():
        if account.has(key):
            follow(account, tracker, **{option: str(account.get(key))})
        account.covered(key, "trackers")


def early_stopping(account: Account, key: str) -> None:
    """Patience, in evaluations, after which a run ends; 0 is off."""
    if number(account.get(key, 0)) and not account.recipe.get("evaluate", {}).get("every"):
        account.passes(key, "nothing is measured while training")
    elif number(account.get(key, 0)):
        account.take(key, "train.early_stopping.patience", int)
        metric = str(account.get("metric_for_best_model", "loss")).removeprefix("eval_")
        account.set("train.early_stopping.metric", f"eval/{metric}")
    account.passes(key, "it is off")
