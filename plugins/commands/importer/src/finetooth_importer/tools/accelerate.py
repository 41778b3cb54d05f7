"""The configuration of accelerate's launcher (`default_config.yaml`): how many processes, how they share a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_importer import tables
from finetooth_importer.account import Account
from finetooth_importer.tools import shared
from finetooth_importer.tools.deepspeed import deepspeed, read_configuration
from finetooth_importer.tools.fsdp import read_configuration as read_fsdp

MARK = "distributed_type"
TABLES = tables.of("accelerate")
DEEPSPEED: Mapping[str, str] = TABLES["deepspeed"]
"""What it calls the keys of DeepSpeed."""
NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])
"""Keys that change nothing here, and why."""


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether these are keys of accelerate's launcher."""
    return MARK in keys and "num_processes" in keys


def read(account: Account) -> None:
    """Take the keys; what they make is the section `scale` of a recipe, and no recipe alone."""
    account.compared = True  # it has no rows
    machines = account.whole("num_machines", 1)
    account.take("num_processes", "scale.devices", lambda count: int(count) // machines)
    if machines > 1:
        account.take("num_machines", "scale.nodes", int)
    account.passes("num_machines", "it is one")
    start = (
        "start ft run on every machine: torchrun --nnodes N --node-rank machine_rank --master-addr main_process_ip "
        "--master-port main_process_port -m finetooth run recipe.yaml"
    )
    for key in ("machine_rank", "main_process_ip", "main_process_port"):
        if machines > 1:
            account.refuse(key, start, unless=None)
        account.passes(key, "ranks on one machine find each other")
    _shared(account)
    if account.get("mixed_precision", "no") != "no":
        account.take("mixed_precision", "train.precision")
    account.passes("mixed_precision", "the plan chooses train.precision")
    if account.get("use_cpu"):
        account.take("use_cpu", "hardware", value="cpu")
    account.passes("use_cpu", "it is off")
    for key, why in NO_EFFECT.items():
        account.passes(key, why)
    account.passes("fsdp_config", "nothing is divided, since distributed_type is not FSDP")
    account.finish({"dynamo_config": "the plan picks kernels for the machine", "megatron_lm_config": shared.DEVICES})


def _shared(account: Account) -> None:
    """How processes share a model."""
    kind = str(account.get(MARK, "NO"))
    if kind == "DEEPSPEED":
        account.covered(MARK, "scale.strategy")
        config = account.get("deepspeed_config") or {}
        if "deepspeed_config_file" in config:
            inner = Account(config, account.folder)
            inner.recipe = account.recipe
            deepspeed(inner, "deepspeed_config_file")
            account.continued(inner, {})
        else:
            read_configuration(
                account, {DEEPSPEED.get(key, key): value for key, value in config.items()}, "deepspeed_config"
            )
        account.covered("deepspeed_config", "scale.strategy")
    elif kind == "FSDP":
        account.covered(MARK, "scale.strategy")
        read_fsdp(account, [], account.get("fsdp_config"))
        account.covered("fsdp_config", "scale.strategy")
    elif kind in ("MULTI_GPU", "MULTI_CPU"):
        account.take(MARK, "scale.strategy", value="ddp")
    else:
        account.refuse(MARK, shared.DEVICES, unless="NO")
