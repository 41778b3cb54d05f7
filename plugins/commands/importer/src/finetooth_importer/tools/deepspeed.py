"""DeepSpeed's configuration, which other tools hand on: what of it the strategy `deepspeed` has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetooth_importer import tables
from finetooth_importer.account import Account, flattened, number

SCALE = "finetooth finds the loss scale of fp16 by itself"
NO_EFFECT: Mapping[str, str] = tables.notes(tables.of("deepspeed")["no_effect"])
"""Keys that change nothing here, and why."""
OF_STAGE_3 = "zero_optimization.stage3_"


def deepspeed(account: Account, key: str = "deepspeed") -> None:
    """Take a DeepSpeed configuration: a file, or a mapping in its place."""
    value = account.get(key)
    if value is None:
        account.passes(key)
        return
    config = value if isinstance(value, Mapping) else _read(account, str(value))
    if config is None:
        account.refuse(key, "no such JSON file here: put it in this folder, or write scale.strategy yourself")
        return
    account.covered(key, "scale.strategy", "set scale.devices to the number of devices")
    read_configuration(account, flattened(config), key)


def read_configuration(account: Account, config: Mapping[str, Any], where: str) -> None:
    """Translates each key of a configuration.

    Args:
        config: keys of mappings inside mappings as `a.b`.
        where: the key that brought it.
    """
    _stage(account, f"{where}.zero_optimization.stage", config.get("zero_optimization.stage", 0))
    for name, value in config.items():
        key = f"{where}.{name}"
        if name == "zero_optimization.stage":
            continue
        if value == "auto":
            account.inside(key, value, "no effect", note="it follows the other keys")
        elif name in NO_EFFECT or name.startswith(OF_STAGE_3):
            account.inside(key, value, "no effect", note=NO_EFFECT.get(name, "it acts only in stage 3"))
        elif name.startswith(("zero_optimization.offload_optimizer.", "zero_optimization.offload_param.")):
            _offload(account, key, name, value)
        elif name == "gradient_clipping":
            account.set("train.max_grad_norm", number(value))
            account.inside(key, value, "taken", "train.max_grad_norm")
        elif name in ("bf16.enabled", "bfloat16.enabled", "fp16.enabled"):
            precision = "fp16" if name.startswith("fp16") else "bf16"
            if value:
                account.set("train.precision", precision)
            account.inside(key, value, "taken" if value else "no effect", "train.precision" if value else "")
        elif name.startswith("fp16."):
            account.inside(key, value, "no effect", note=SCALE)
        else:
            account.inside(key, value, "not taken", note="the strategy deepspeed has no such setting")


def _stage(account: Account, key: str, stage: Any) -> None:
    if stage in (1, 2):
        account.set("scale.strategy", {"name": "deepspeed", "stage": stage})
        account.inside(key, stage, "taken", "scale.strategy.stage")
    elif stage == 3:
        account.set("scale.strategy", {"name": "zero3"})
        account.inside(key, stage, "taken", "scale.strategy")
    else:
        account.set("scale.strategy", "ddp")
        account.inside(key, stage, "taken", "scale.strategy")


def _offload(account: Account, key: str, name: str, value: Any) -> None:
    strategy, kind = account.recipe["scale"]["strategy"], name.removeprefix("zero_optimization.")
    offered = {
        ("deepspeed", "offload_optimizer.device"): ("scale.strategy.offload", True),
        ("zero3", "offload_param.device"): ("scale.strategy.offload", True),
        ("zero3", "offload_optimizer.device"): ("optimizer.offload", "cpu"),
    }
    setting, there = offered.get((strategy["name"] if isinstance(strategy, Mapping) else strategy, kind), ("", None))
    if name.endswith(".device") and value in (None, "none"):
        account.inside(key, value, "no effect", note="it is off")
    elif setting and value == "cpu":
        account.set(setting, there)
        account.inside(key, value, "taken", setting)
    else:
        note = "backend.layers moves only frozen layers" if "param" in name else "only host memory is used"
        account.inside(key, value, "not taken", note=note)


def _read(account: Account, name: str) -> Mapping[str, Any] | None:
    """The file, by its path or by its name in the same folder; None if there is none that can be read."""
    if account.folder is None:
        return None
    for path in (account.folder / name, account.folder / name.rpartition("/")[2]):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content
    return None
