"""mud-puppy's command line, and its TrainingConfig in Python (version 0.4, with its defaults)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from finetooth_importer import packing, tables
from finetooth_importer.account import Account, name_of, number
from finetooth_importer.first_row import first_row
from finetooth_importer.tools import exports, rollouts, shared, watched

MARK = "mud_puppy"
"""The key under which the reader of commands says that it is one."""

TABLES = tables.of("mudpuppy")
NAMES: Mapping[str, str] = TABLES["names"]
"""Fields of its TrainingConfig by the flags that mean the same."""

SWITCHES = TABLES["switches"]
"""Flags without a value, so that a word behind them is the model or the rows."""

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of mud-puppy's."""
    return MARK in keys or "finetuning_method" in keys


def read(account: Account, folder: Path | None = None) -> None:
    """Take the flags of mud-puppy, or the fields of its TrainingConfig.

    Args:
        folder: where a file with its rows is looked for: what it does with them depends on their columns.
    """
    inside = Account({NAMES.get(key, key): value for key, value in account.given.items()})
    inside.recipe = account.recipe
    _read(inside, folder)
    names = {NAMES.get(key, key): key for key in account.given}
    account.continued(inside, names)


def _read(account: Account, folder: Path | None) -> None:
    account.take("model", "model.name", str)
    account.take("dataset", "data.train", str)
    account.take("output", "output", str)
    account.default("output", "output", "./outputs")
    kind = str(account.get("method", "full"))
    _method(account, kind)
    _rows(account, first_row(account.get("dataset"), folder))
    _adapter(account, kind)
    precision = str(account.get("precision", "bf16"))
    if precision in ("bf16", "fp16", "fp32", "fp8"):
        account.take("precision", "train.precision")
        account.default("precision", "train.precision", "bf16")
    account.refuse("precision", "no such precision: bf16, fp16, fp32 or fp8")
    shared.batch(account, "batch_size", 1, steps="gradient_accumulation")
    method = name_of(account.recipe["method"])
    if method == "grpo":
        rollouts.prompts(account, account, "", "batch_size")
    elif method == "kto" and account.recipe["train"]["batch_size"] == 1:
        account.set("train.batch_size", 2)
        account.inside("batch_size", 1, "otherwise", "train.batch_size", "kto compares answers to two prompts at least")
    account.set("optimizer.name", "adamw")
    account.take("learning_rate", "optimizer.learning_rate", number)
    account.default("learning_rate", "optimizer.learning_rate", 2e-5)
    account.take("epochs", "train.epochs", number)
    account.default("epochs", "train.epochs", 1)
    shared.schedule(account, "lr_scheduler", "linear")
    account.take("max_grad_norm", "train.max_grad_norm", number)
    if account.whole("max_seq_length", 0):
        account.take("max_seq_length", "train.max_length", int)
    else:
        account.passes("max_seq_length", "the model's own limit, at most 2048")
        account.set("train.max_length", 2048)
        account.inside("max_seq_length", 2048, "default", "train.max_length", "the model's own limit, at most 2048")
    shared.cut(account)
    account.passes("pack_sequences", "a step has batch_size rows in both; they never see each other")
    packing.by_tokens(account, "tokens_per_batch", account.whole("gradient_accumulation", 1))
    if account.get("no_gradient_checkpointing") or account.get("use_gradient_checkpointing") is False:
        account.set("train.gradient_checkpointing", False)
        account.covered("no_gradient_checkpointing", "train.gradient_checkpointing")
        account.covered("use_gradient_checkpointing", "train.gradient_checkpointing")
    else:
        account.take("use_gradient_checkpointing", "train.gradient_checkpointing")
        account.default("use_gradient_checkpointing", "train.gradient_checkpointing", True)
    if number(account.get("early_stopping", 0)):
        account.set("data.eval", {"fraction": 0.1})
        account.set("evaluate.every", "epoch")
        account.set("checkpoint.every", "epoch")
        account.set("checkpoint.select_on", "eval/loss")
    watched.early_stopping(account, "early_stopping")
    if account.get("log_with") in watched.TRACKERS:
        watched.follow(account, str(account.get("log_with")))
        account.covered("log_with", "trackers")
    account.passes("log_with", "metrics are in metrics.jsonl of the run folder")
    exports.merged_in(account, "merge_lora", "merge_precision")
    shared.without_effect(account, NO_EFFECT)
    account.finish(REFUSED)


def _method(account: Account, kind: str) -> None:
    methods = {"rl": "grpo", "rm": "rm", "prm": "prm", "multimodal": "sft", "gptq": "sft", "preference": ""}
    method = methods.get(kind, "sft" if kind in ("full", "lora", "qlora", "qat") else kind)
    if kind == "preference":
        words = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "orpo": "orpo"}
        named = str(account.get("preference", "dpo"))
        method = words.get(named, "dpo")
        account.set("method", method)
        if named == "ipo":
            account.set("method.loss", "ipo")
        if named not in words:
            account.refuse("preference", "method is dpo, kto, orpo, simpo or cpo", unless=None)
        account.covered("preference", "method")
    else:
        account.set("method", method)
    account.passes("preference", "method is not preference")
    if method == "grpo":
        account.set("method.num_generations", 4)
        account.set("method.max_completion_length", 128)
        account.set("method.rewards", [{"name": "answer_length", "least": 4, "most": 512}])
        account.inside("rewards", "4 to 512 words", "default", "method.rewards", "it has no other reward")
    if method == "sft" and account.get("response_only") is False:
        account.take("response_only", "method.train_on", value="all")
    account.passes("response_only", "only answers train; its collator always trains prompts too")


def _rows(account: Account, row: Mapping[str, Any]) -> None:
    """How rows are read: by their columns, as its loaders do.

    Args:
        row: the first one; empty if it is not known.
    """
    method = name_of(account.recipe["method"])
    note = partial(account.inside, "dataset", ", ".join(row), "otherwise")
    if method == "sft" and isinstance(row.get("text"), str) and "messages" not in row:
        account.set("method", "pretrain")
        note("method", "pretrain trains whole texts, in windows of train.max_length")
    elif method == "sft" and isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        account.set("data.format", {"name": "prompt_completion", "style": "raw"})
        note("data.format", "texts are read there without chat markup")
    elif method == "kto" and {"chosen", "rejected"} <= row.keys():
        account.set("data.format", {"name": "preference", "unpair": True})
        note("data.format", "each pair becomes two answers with a label; there such rows are refused")
    elif method == "rm" and {"text", "label"} <= row.keys():
        account.set("data.format", {"name": "labelled", "prompt": "", "completion": "text"})
        note("data.format", "texts with a number")


def _adapter(account: Account, kind: str) -> None:
    wants_low_rank = any(account.has(key) for key in ("lora_r", "lora_alpha", "lora_targets"))
    low = kind in ("lora", "qlora") or (wants_low_rank and kind in ("preference", "rl", "rm", "prm", "multimodal"))
    names = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets")
    if low:
        account.set("adapter", "lora")
        shared.low_rank_defaults(account, rank=8, alpha=16, dropout=0.05)
        account.take(
            "lora_targets",
            "adapter.targets",
            lambda names: names if isinstance(names, list) else [name.strip() for name in names.split(",")],
        )
        account.default("lora_targets", "adapter.targets", TARGETS)
    elif kind == "qat":
        account.set("adapter", {"name": "qat", "format": "int8"})
    else:
        account.set("adapter", "full")
    if kind == "qlora":
        backend = str(account.get("quant_backend", "int4"))
        account.take("quant_backend", "quantization")
        account.default("quant_backend", "quantization", backend)
    if kind == "gptq":
        account.refuse("method", "ft export RUN --to gptq, or the quantizer gptq under a LoRA", unless=None)
    account.covered("method", "method and adapter")
    for key in (*names, "quant_backend", "quant_block_size", "gptq_group_size", "gptq_actorder", "gptq_damp_percent"):
        account.passes(key, "the method does not use it")
