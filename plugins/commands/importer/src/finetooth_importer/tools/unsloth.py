"""Unsloth: its scripts and notebooks, which are read and never run, and the flags of its command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_importer import tables
from finetooth_importer.account import Account
from finetooth_importer.tools import exports, trl

MARK = "unsloth"
"""The key under which the reader of scripts and commands says that it is one."""

NAMES: Mapping[str, str] = {
    "model_name": "model",
    "dataset": "dataset_name",
    "revision": "model_revision",
}
"""Its own names of what TRL has."""

TABLES = tables.of("unsloth")
NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of Unsloth's."""
    return MARK in keys


def read(account: Account, folder: Path | None = None) -> None:
    """Take what an Unsloth script gives to models, adapters and trainers; trainers are TRL's.

    Args:
        folder: where a file with its rows is looked for.
    """
    keys = {
        NAMES.get(key, key): value
        for key, value in account.given.items()
        if key not in NAMES or NAMES[key] not in account.given
    }
    if "max_length" in keys and "max_seq_length" in keys:
        keys.pop("max_seq_length")
    if not keys.get("full_finetuning"):
        keys[trl.PEFT] = "get_peft_model"
    inside = Account(keys)
    inside.recipe = account.recipe
    kind = str(inside.get(trl.METHOD, "sft"))
    for key, note in NO_EFFECT.items():
        if key != "dataset_text_field" or inside.get(key, "text") == "text":
            inside.passes(key, note)
    if inside.get("use_gradient_checkpointing") is not None:
        inside.take(
            "use_gradient_checkpointing",
            "train.gradient_checkpointing",
            value=bool(inside.get("use_gradient_checkpointing")),
        )
    if not inside.has("max_length") and not inside.has("max_seq_length"):
        inside.default("max_seq_length", "train.max_length", 2048)
    if inside.get("full_finetuning"):
        inside.take("full_finetuning", "adapter", value="full")
    inside.passes("full_finetuning", "it is off")
    if "load_in_4bit" not in keys and not inside.get("load_in_8bit") and not inside.get("full_finetuning"):
        inside.default("load_in_4bit", "quantization", "nf4")
    _parts(inside)
    for key in ("finetune_vision_layers",):
        if inside.get(key) is False:
            inside.passes(key, "an adapter does not train the image encoder")
    if inside.get("train_on_responses_only"):
        inside.take("train_on_responses_only", "method.train_on", value="assistant")
    exports.unsloth(inside)
    for key, note in REFUSED.items():
        inside.refuse(key, note)
    trl.read(inside, folder)
    if keys.get("train_on_responses_only") and kind == "sft":
        inside.set("method.train_on", "assistant")
        inside.recipe["method"].pop("train_markup", None)
        inside.lines = [line for line in inside if line.key != "assistant_only_loss" or line.outcome != "default"]
    names = {NAMES.get(key, key): key for key in account.given}
    inside.lines = [line for line in inside if line.key not in (trl.METHOD, trl.PEFT) or line.key in account.given]
    account.continued(inside, names)
    for key in set(account.given) - {line.key for line in account}:
        account.inside(key, account.given[key], "no effect", note="another key of the script says the same")


def _parts(account: Account) -> None:
    """Parts of a layer that are left out, as get_peft_model of FastVisionModel names them."""
    for key, others in (
        ("finetune_attention_modules", ["gate_proj", "up_proj", "down_proj"]),
        ("finetune_mlp_modules", "attention"),
    ):
        if account.get(key) is False:
            account.take(key, "adapter.targets", value=others, note="the other part's modules")
        account.passes(key, "adapter.targets selects the modules")
    account.refuse("finetune_language_layers", "only layers of the language model train", unless=True)
