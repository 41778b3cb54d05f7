"""mlx-lm's YAML and the flags of `mlx_lm.lora` (version 0.28, with its defaults)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetooth_importer import tables
from finetooth_importer.account import Account, number
from finetooth_importer.tools import shared, watched

TABLES = tables.of("mlxlm")
OPTIMIZERS: Mapping[str, str] = TABLES["optimizers"]
KEYS = {"iters", "num_layers", "lora_layers", "lora_parameters", "steps_per_eval", "adapter_path", "adapter_file"}

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])


LAST = "the last {} layers carry the adapter there, here every one: name theirs, adapter.targets: [pattern of a path]"


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of mlx-lm's."""
    names = {str(key).partition(".")[0] for key in keys}
    return "model" in names and len(KEYS & names) >= 2


def read(account: Account) -> None:
    """Take the keys of mlx-lm, which stand as `lora_parameters.rank`."""
    name = str(account.get("model", ""))
    few = re.search(r"-(4|8|6|3)bit$|-(4|8)bits?\b", name)
    account.take(
        "model", "model.name", note="weights that MLX quantised are not read: name the model's own" if few else ""
    )
    account.default("model", "model.name", "Qwen/Qwen3-0.6b")
    account.passes("trust_remote_code", "code runs only with model.loader.trust_remote_code")
    account.set("method", "sft")
    if account.get("mask_prompt"):
        account.take("mask_prompt", "method.train_on", value="assistant", note="all answers; there only the last one")
    account.passes("mask_prompt", "it is off")
    if not account.get("mask_prompt"):
        account.set("method.name", "sft")
        account.default("mask_prompt", "method.train_on", "all", "prompts train there too")
        account.set("method.train_on", "all")
    _data(account)
    _adapter(account)
    account.take("max_seq_length", "train.max_length", int)
    account.default("max_seq_length", "train.max_length", 2048)
    account.set("train.excess_length", "truncate")
    often = "grad_accumulation_steps" if account.has("grad_accumulation_steps") else "gradient_accumulation_steps"
    shared.batch(account, "batch_size", 4, steps=often)
    each = account.whole(often, 1)
    note = f"optimizer steps: {each} iterations are one" if each > 1 else ""
    account.take("iters", "train.max_steps", lambda count: max(1, int(count) // each), note=note)
    account.default("iters", "train.max_steps", 1000 // each)
    account.take("seed", "train.seed", int)
    account.default("clip", "train.max_grad_norm", 0, "gradients are not clipped there")
    account.take("grad_checkpoint", "train.gradient_checkpointing")
    _updates(account)
    for key, setting in (("save_every", "checkpoint.every"), ("steps_per_eval", "evaluate.every")):
        account.take(key, setting, lambda count: max(1, int(count) // each), note=note)
    for key in ("adapter_path", "adapter_file"):
        account.take(key, "output", str, note="the run folder; its artifact is in peft's layout")
    trackers = account.get("report_to")
    names = [tracker.strip() for tracker in trackers.split(",")] if isinstance(trackers, str) else list(trackers or [])
    if "wandb" in names or (account.has("wandb") and not trackers):
        watched.follow(account, "wandb")
        account.covered("report_to", "trackers", "no tracker swanlab here" if "swanlab" in names else "")
        watched.tracked(account, "wandb", {"wandb": "project", "project_name": "project"})
    account.refuse("report_to", "no tracker of that name here; metrics are in metrics.jsonl of the run folder")
    account.passes("project_name", "no tracker uses it")
    shared.without_effect(account, NO_EFFECT)
    account.finish(REFUSED)


def _data(account: Account) -> None:
    if account.has("hf_dataset.path") or account.has("hf_dataset.name"):
        key = "hf_dataset.path" if account.has("hf_dataset.path") else "hf_dataset.name"
        format_: Any = None
        if account.has("hf_dataset.chat_feature"):
            format_ = {"name": "chat", "column": account.get("hf_dataset.chat_feature")}
        elif account.has("hf_dataset.prompt_feature"):
            format_ = {
                "name": "prompt_completion",
                "prompt": account.get("hf_dataset.prompt_feature"),
                "completion": account.get("hf_dataset.completion_feature", "completion"),
            }
        elif account.has("hf_dataset.text_feature"):
            format_ = {"name": "text", "column": account.get("hf_dataset.text_feature")}
        made = {
            "name": "datasets",
            "path": account.get(key),
            "split": account.get("hf_dataset.train_split", "train[:80%]"),
        }
        account.take(key, "data.train", value={**made, "format": format_} if format_ else made)
        split = account.get("hf_dataset.valid_split")
        if split:
            account.take(
                "hf_dataset.valid_split", "data.eval", value={**account.recipe["data"]["train"], "split": split}
            )
        for inside in ("train_split", "prompt_feature", "completion_feature", "chat_feature", "text_feature"):
            account.covered(f"hf_dataset.{inside}", "data.train")
        account.passes("hf_dataset.test_split", "held-out rows are one source")
        account.passes("data", "hf_dataset comes first")
        return
    path = str(account.get("data", "mlx-community/WikiSQL"))
    if re.search(r"\.jsonl?$", path):
        account.take("data", "data.train", value=path)
    elif path.startswith((".", "/", "~")) or not re.fullmatch(r"[\w-]+/[\w.-]+", path) or path.startswith("data/"):
        folder = path.rstrip("/")
        note = f"the files train.jsonl and valid.jsonl of that folder; {folder}/test.jsonl is left out"
        account.take("data", "data.train", value=f"{folder}/train.jsonl", note=note)
        account.set("data.eval", f"{folder}/valid.jsonl")
    else:
        note = "read as a hub id; of a folder name train.jsonl and valid.jsonl"
        account.take("data", "data.train", value=path, note=note)
    account.default("data", "data.train", path)


def _adapter(account: Account) -> None:
    kind = str(account.get("fine_tune_type", "dora" if account.get("use_dora") else "lora"))
    if kind == "full":
        account.take("fine_tune_type", "adapter", value="full")
        layers = account.get("num_layers", account.get("lora_layers", 16))
        if layers != -1:
            account.set("adapter", {"name": "freeze", "layers": layers})
            account.covered("num_layers", "adapter.layers")
            account.covered("lora_layers", "adapter.layers")
        account.passes("num_layers", "all layers train")
        for key in ("rank", "scale", "dropout", "keys", "alpha"):
            account.passes(f"lora_parameters.{key}", "the configuration sets no adapter")
        return
    account.take("fine_tune_type", "adapter", value="lora")
    account.set("adapter.name", "lora")
    if kind == "dora":
        account.set("adapter.dora", True)
    rank = account.whole("lora_parameters.rank", 8)
    account.take("lora_parameters.rank", "adapter.rank", int)
    account.default("lora_parameters.rank", "adapter.rank", 8)
    note = "their scale times the rank"
    if account.has("lora_parameters.scale"):
        account.take("lora_parameters.scale", "adapter.alpha", lambda scale: number(scale) * rank, note=note)
    else:
        account.default("lora_parameters.scale", "adapter.alpha", 20.0 * rank, note)
    account.take("lora_parameters.dropout", "adapter.dropout", number)
    account.take("lora_parameters.keys", "adapter.targets", list)
    for key in ("num_layers", "lora_layers"):
        if account.get(key) == -1:
            account.covered(key, "adapter.targets")
        else:
            account.refuse(key, LAST.format(account.get(key)))
    if not account.has("num_layers") and not account.has("lora_layers"):
        account.inside("num_layers", 16, "not taken", note="it is the default there: " + LAST.format(16))


def _updates(account: Account) -> None:
    theirs = str(account.get("optimizer", "adam"))
    name = OPTIMIZERS.get(theirs)
    if name is None:
        account.refuse("optimizer", f"no optimizer {theirs} here; ft plugins list --kind optimizer shows them")
        return
    account.take("optimizer", "optimizer.name", value=name)
    account.default("optimizer", "optimizer.name", name)
    account.take("learning_rate", "optimizer.learning_rate", number)
    account.default("learning_rate", "optimizer.learning_rate", 1e-5)
    for option in ("betas", "eps", "weight_decay", "momentum", "nesterov"):
        key = f"optimizer_config.{theirs}.{option}"
        account.take(key, f"optimizer.{option}", None if option in ("betas", "nesterov") else number)
    if theirs == "adamw":
        account.default("optimizer_config.adamw.weight_decay", "optimizer.weight_decay", 0.01)
    for key in [key for key in account.given if str(key).startswith("optimizer_config.")]:
        if not str(key).startswith(f"optimizer_config.{theirs}"):
            account.passes(str(key), "it belongs to another optimizer")
    kind = account.get("lr_schedule.name")
    arguments = list(account.get("lr_schedule.arguments") or [])
    peak = number(arguments[0]) if arguments else 0
    if kind == "cosine_decay" and peak:
        least = number(arguments[2]) / peak if len(arguments) > 2 else 0.0
        account.take("lr_schedule.name", "schedule.name", value="cosine_with_min" if least else "cosine")
        if least:
            account.set("schedule.min_ratio", least)
        note = "the rate falls over the whole run" if number(arguments[1]) != account.get("iters") else ""
        account.take("lr_schedule.arguments", "optimizer.learning_rate", value=peak, note=note)
        account.take("lr_schedule.warmup", "schedule.warmup_steps", int)
        account.default("lr_schedule.warmup", "schedule.warmup_steps", 0)
        account.passes("lr_schedule.warmup_init", "the warm-up begins near 0")
    elif kind is None:
        account.default("lr_schedule.name", "schedule", "constant")
    else:
        for inside in ("name", "arguments", "warmup", "warmup_init"):
            account.refuse(f"lr_schedule.{inside}", "ft plugins list --kind schedule shows them")
