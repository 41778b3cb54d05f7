"""AutoTrain's YAML and the flags of `autotrain llm` (version 0.8, with its defaults)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_importer import packing, tables
from finetooth_importer.account import Account, number
from finetooth_importer.tools import rows, shared, watched
from finetooth_importer.tools.axolotl_datasets import TEMPLATES

TABLES = tables.of("autotrain")
TRAINERS: Mapping[str, str] = TABLES["trainers"]
FILE = re.compile(r"\.(jsonl?|csv|parquet)$")
"""A path of a file, not of a folder."""
PAIRS = ("dpo", "orpo", "rm")

NAMES: Mapping[str, str] = TABLES["names"]
"""Keys of its YAML by the flags that mean the same; those of `params` are called as the flags are."""

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of AutoTrain's."""
    task = str(keys.get("task", ""))
    return (task.startswith("llm") and "base_model" in keys) or {"data_path", "project_name"} <= keys.keys()


def read(account: Account) -> None:
    """Take the keys of AutoTrain; those of its YAML stand as `params.lr`."""
    inside = Account({_flag(key): value for key, value in account.given.items()})
    inside.recipe = account.recipe
    _read(inside)
    names = {_flag(key): key for key in account.given}
    account.continued(inside, names)


def _flag(key: str) -> str:
    return NAMES.get(key, key.removeprefix("params."))


def _read(account: Account) -> None:
    account.take("model", "model.name", str)
    task = str(account.get("task", "llm-default")).replace(":", "-").removeprefix("llm").lstrip("-") or "default"
    kind = str(account.get("trainer", task))
    method = TRAINERS.get(kind)
    if method is None:
        key = "trainer" if account.has("trainer") else "task"
        account.refuse(key, f"no method for {kind!r}; ft plugins list --kind method shows them", unless=None)
        method = kind  # never another one in its place
    account.set("method", method)
    account.covered("trainer", "method")
    account.covered("task", "method")
    _data(account, method)
    if method in ("dpo", "orpo"):
        account.take("dpo_beta", "method.beta", number)
    account.passes("dpo_beta", f"method {method} has none")
    account.passes("model_ref", "the reference is the model as it was before the run")
    account.take("block_size", "train.max_length", lambda size: int(size[0] if isinstance(size, list) else size))
    if not account.has("block_size"):
        account.default("block_size", "train.max_length", account.whole("model_max_length", 2048))
    shared.cut(account)
    shared.batch(account, "batch_size", 2, "train_batch_size", steps="gradient_accumulation", times=4)
    if method == "sft":
        packing.always(account, "packing", "its trainer sft packs rows: ")
    account.take("epochs", "train.epochs", number)
    account.default("epochs", "train.epochs", 1)
    account.take("max_grad_norm", "train.max_grad_norm", number)
    account.take("seed", "train.seed", int)
    account.default("seed", "train.seed", 42)
    account.take("lr", "optimizer.learning_rate", number)
    account.default("lr", "optimizer.learning_rate", 3e-5)
    shared.optimizer(account, "optimizer", "adamw_torch")
    shared.schedule(account, "scheduler", "linear")
    account.default("warmup_ratio", "schedule.warmup_ratio", 0.1)
    if account.get("mixed_precision") in ("bf16", "fp16"):
        account.take("mixed_precision", "train.precision")
    account.passes("mixed_precision", "it is off")
    if account.get("disable_gradient_checkpointing"):
        account.take("disable_gradient_checkpointing", "train.gradient_checkpointing", value=False)
    account.passes("disable_gradient_checkpointing", "finetooth decides it by memory")
    _adapter(account)
    shared.without_dropout(account, "rm")
    if account.recipe.get("data", {}).get("eval"):
        account.take("eval_strategy", "evaluate.every", lambda word: "epoch" if word == "epoch" else 0)
        account.default("eval_strategy", "evaluate.every", "epoch")
    account.passes("eval_strategy", "no rows are held out")
    account.take("save_total_limit", "checkpoint.keep_last", int)
    if account.get("log") in watched.TRACKERS:
        watched.follow(account, str(account.get("log")))
        account.covered("log", "trackers")
    account.passes("log", "metrics are in metrics.jsonl of the run folder")
    account.take("project_name", "output", lambda name: f"runs/{name}")
    if account.get("push_to_hub"):
        account.refuse("push_to_hub", "ft push RUN sends an artifact to a hub")
    account.passes("push_to_hub", "it is off")
    shared.without_effect(account, NO_EFFECT)
    account.finish(REFUSED)


def _file(folder: str, split: str) -> str:
    """A split's file in a folder: AutoTrain reads CSV and JSONL, and takes JSONL where there is neither yet."""
    file = f"{folder.rstrip('/')}/{split}"
    return f"{file}.csv" if Path(f"{file}.csv").is_file() and not Path(f"{file}.jsonl").is_file() else f"{file}.jsonl"


def _data(account: Account, method: str) -> None:
    path = str(account.get("data_path", ""))
    text = str(account.get("text_column", "text"))
    columns = {"prompt": str(account.get("prompt_text_column", "prompt")), "chosen": text}
    columns["rejected"] = str(account.get("rejected_text_column", "rejected"))
    format_: Any
    if method in PAIRS:
        format_ = {"name": "preference", **{key: value for key, value in columns.items() if key != value}}
        if columns["prompt"] == "prompt":
            format_["prompt"] = "prompt"
    elif method == "grpo":
        format_ = {"name": "task", "prompt": text}
    else:
        format_ = None if text == "text" else {"name": "chat", "column": text} if account.get("chat_template") else (
            {"name": "text", "column": text}
        )  # fmt: skip
    options = {"format": format_} if format_ else {}
    for key, setting, default in (("train_split", "data.train", "train"), ("valid_split", "data.eval", None)):
        split = account.get(key, default)
        if not path or not split:
            account.passes(key, "no rows are held out")
            continue
        source = rows.source(path, **options)
        if source["name"] == "datasets":
            source["split"] = split
        if path.startswith((".", "/", "~", "data")) and not FILE.search(path):
            source = rows.source(_file(path, str(split)), **options)
        account.set(setting, source)
        account.covered(key, setting)
    account.covered("data_path", "data.train")
    for key in ("text_column", "prompt_text_column", "rejected_text_column"):
        account.covered(key, "data.train.format")
    template = account.get("chat_template")
    if template in TEMPLATES or template in ("chatml", "zephyr"):
        account.take("chat_template", "data.renderer", value=TEMPLATES.get(str(template), str(template)))
    elif template in ("tokenizer", "none"):
        account.passes("chat_template", "finetooth uses the model's own markup anyway")
    account.refuse("chat_template", "the renderer of the model's family is taken; data.renderer names another")


def _adapter(account: Account) -> None:
    names = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")
    if account.get("peft") or account.get("use_peft"):
        account.set("adapter", "lora")
        shared.low_rank_defaults(account, rank=16, alpha=32, dropout=0.05)
        named = account.get("target_modules", "all-linear")
        split = named if named == "all-linear" else [target.strip() for target in str(named).split(",")]
        account.take("target_modules", "adapter.targets", value=split)
        bits = {"int4": 4, "int8": 8, "4": 4, "8": 8}.get(str(account.get("quantization")))
        if "quantization" not in account.given and account.recipe["adapter"]:
            account.default("quantization", "quantization", "nf4", "int4 of bitsandbytes")
        shared.quantised(account, bits, "quantization")
    else:
        account.set("adapter", "full")
    for key in (*names, "quantization"):
        account.passes(key, "the configuration sets no adapter")
