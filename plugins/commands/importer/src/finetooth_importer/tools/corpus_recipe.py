"""Recipes that name a `base` and a `corpus`, and register what they train under a channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_importer.account import Account, number
from finetooth_importer.tools import shared

KEYS = {"base", "lora", "data", "train", "register"}
SELECTED = {"val_loss_min": "eval/loss"}

REFUSED: Mapping[str, str] = {
    "register.registry": "set export.registry.registry to the folder that ft registry init made",
}


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is such a recipe."""
    names = {str(key) for key in keys}
    tops = {name.partition(".")[0] for name in names}
    inner = any(name.startswith(("data.corpus", "register.")) for name in names)
    return "base" in tops and len(KEYS & tops) >= 2 and (inner or bool(tops & {"lora", "register"}))


def read(account: Account) -> None:
    """Take its keys."""
    account.take("base", "model.name")
    account.set("method", "sft")
    kind = str(account.get("method", "lora"))
    if kind == "full":
        account.take("method", "adapter", value="full")
    elif kind in ("lora", "dora", "qlora"):
        account.take("method", "adapter.name", value="lora")
        if kind == "dora":
            account.set("adapter.dora", True)
        elif kind == "qlora":
            account.set("quantization", "nf4")
    else:
        account.refuse("method", f"no adapter {kind}; ft plugins list --kind adapter shows them")
    account.take("backend", "backend", str)
    account.take("lora.rank", "adapter.rank", int)
    account.take("lora.alpha", "adapter.alpha", number)
    account.take("lora.dropout", "adapter.dropout", number)
    account.take("lora.target_modules", "adapter.targets", list)
    account.take("data.corpus", "data.train", str)
    account.take("data.examples", "data.examples", int)
    account.take("data.validation", "data.eval")
    for name in ("customer_data", "licence", "pii"):
        account.take(f"data.{name}", f"data.classification.{name}")
    key = "train.batch_size" if account.has("train.batch_size") else "train.batch"
    shared.batch(account, key, 4, steps="train.gradient_accumulation_steps")
    account.set("optimizer.name", "adamw")
    account.take("train.learning_rate", "optimizer.learning_rate", number)
    account.take("train.epochs", "train.epochs", number)
    account.take("train.iterations", "train.max_steps", int)
    selected = SELECTED.get(str(account.get("train.select_on")))
    if selected:
        account.take("train.select_on", "checkpoint.select_on", value=selected)
        account.set("checkpoint.every", 10)
        account.set("evaluate.every", 10)
        account.set("evaluate.evaluators", ["loss"])
        account.default("data.validation", "data.eval", {"fraction": 0.1}, "something must be measured to select on")
    else:
        account.refuse("train.select_on", f"no measurement of that name here; {', '.join(SELECTED)} is known")
    if account.has("register.name") or account.has("register.channel"):
        made: dict[str, Any] = {"name": "registry", "model": str(account.get("register.name", "model"))}
        for name in ("channel", "sign"):
            if account.has(f"register.{name}"):
                made[name] = account.get(f"register.{name}")
        account.set("export", [made])
        note = "ft registry init makes the registry, and FT_REGISTRY_KEY names the key"
        for name in ("name", "channel", "sign"):
            account.covered(f"register.{name}", "export.registry", note)
    account.finish(REFUSED)
