"""Fully sharded training, as axolotl, transformers and accelerate write it: what of it the strategy `fsdp` has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_importer import tables
from finetooth_importer.account import Account, says_nothing

TABLES = tables.of("fsdp")
NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])
"""Keys that change nothing here, and why."""
SHARDING: Mapping[str, str] = TABLES["sharding"]
"""Ways to divide a model, by transformers' and torch's names, as they are called here: fsdp, keep_layers or ddp."""
UNDIVIDED = "every rank has the whole model on its device"
HYBRID = "the parts are spread over all devices, on several machines too"
OTHER = "the strategy fsdp has no such setting"


def fsdp(account: Account, *, config_alone: bool) -> None:
    """Take `fsdp`, `fsdp_config` and `fsdp_version`, if they ask for it.

    Args:
        config_alone: whether `fsdp_config` asks for it where `fsdp` is left out, as axolotl has it.
    """
    ways = account.get("fsdp")
    config = account.get("fsdp_config")
    if not (ways or (config_alone and config)):
        for key in ("fsdp", "fsdp_config", "fsdp_version"):
            account.passes(key, "it is off: no key turns fsdp on")
        return
    words = ways.replace(",", " ").split() if isinstance(ways, str) else ways if isinstance(ways, list) else []
    read_configuration(account, [(f"fsdp[{n}]", str(word)) for n, word in enumerate(words)], config)
    for key in ("fsdp", "fsdp_config"):
        account.covered(key, "scale.strategy", "set scale.devices to the number of devices")
    account.passes("fsdp_version", "the strategy is the same for both")


def read_configuration(account: Account, words: list[tuple[str, str]], config: Any) -> None:
    """Translates each key of `fsdp_config`, and each word of `fsdp`."""
    account.set("scale.strategy", "fsdp")
    inside = list(_options(config)) if isinstance(config, Mapping) else []
    offloads = [(key, word) for key, word in words if word.lower() == "offload"]
    for key, word in words:
        if word.lower() == "offload":
            continue
        if word.lower() != "auto_wrap":
            _divided(account, key, word)
    for name, value in inside:
        key = f"fsdp_config.{name}"
        if name in ("sharding_strategy", "reshard_after_forward"):
            _divided(account, key, value)
        elif name == "activation_checkpointing":
            account.set("train.gradient_checkpointing", bool(value))
            account.inside(key, value, "taken", "train.gradient_checkpointing")
        elif name in ("offload_params", "cpu_offload"):
            if value:
                offloads.append((key, value))
            else:
                account.inside(key, value, "no effect", note="it is off")
        elif name in NO_EFFECT or says_nothing(value) or value is False:
            account.inside(key, value, "no effect", note=NO_EFFECT.get(name, "it is off"))
        else:
            account.inside(key, value, "not taken", note=OTHER)
    strategy = account.recipe["scale"]["strategy"]
    for key, value in offloads:
        if strategy == "ddp":
            account.inside(key, value, "not taken", note=UNDIVIDED)
        else:
            account.set("scale.strategy.offload", True)
            account.inside(key, value, "taken", "scale.strategy.offload")


def _options(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Their names without `fsdp_`, which accelerate and older axolotl write before each."""
    for name, value in config.items():
        yield str(name).removeprefix("fsdp_"), value


def _divided(account: Account, key: str, value: Any) -> None:
    """How a model is divided; `reshard_after_forward` says it as a boolean, too."""
    way = SHARDING.get(str(value).lower())
    if way is None:
        account.inside(key, value, "not taken", note=OTHER)
    elif way == "hybrid":
        account.inside(key, value, "otherwise", "scale.strategy", HYBRID)
    else:
        made = {"name": "fsdp", "keep_layers": True} if way == "keep_layers" else way
        account.set("scale.strategy", made)
        account.inside(key, value, "taken", "scale.strategy")
