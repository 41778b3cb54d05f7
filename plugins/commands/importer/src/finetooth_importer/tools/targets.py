"""Which modules carry an adapter, as peft's LoraConfig says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetooth_importer.account import Account

ALL = ("all-linear", "all")


USUAL = ["q_proj", "v_proj"]
DEFAULTS: Mapping[str, tuple[int, int, float, Any]] = {
    "peft": (8, 8, 0.0, USUAL),
    "trl": (16, 32, 0.05, USUAL),
    "unsloth": (16, 16, 0.0, "all-linear"),
}
"""Rank, alpha, dropout and modules where they are left out: of LoraConfig, of TRL's command line, of get_peft_model."""
USUAL_NOTE = "peft's own choice for most families"


def defaults(account: Account, whose: str) -> None:
    """What a low-rank adapter is where keys are left out.

    Args:
        whose: of `DEFAULTS`.
    """
    rank, alpha, dropout, modules = DEFAULTS[whose]
    for setting, keys, value in (("rank", ("lora_r", "r"), rank), ("alpha", ("lora_alpha",), alpha)):
        if not any(map(account.has, keys)):
            account.default(keys[-1], f"adapter.{setting}", value)
    if dropout:
        account.default("lora_dropout", "adapter.dropout", dropout)
    target_keys = (
        "lora_target_modules",
        "target_modules",
        "target_parameters",
        "lora_target_parameters",
        "lora_target_linear",
    )
    if not any(map(account.has, target_keys)) and modules != "all-linear":
        account.default("lora_target_modules", "adapter.targets", modules, USUAL_NOTE)


def take(account: Account, *keys: str, layers: str = "layers_to_transform", pattern: str = "layers_pattern") -> None:
    """Take the modules and the layers that they are in.

    Args:
        keys: names that the tool reads as `target_modules`, the first that is there is taken: a list of names that end
            a path, a pattern of whole paths, or all linear modules.
        layers: the key with the numbers of layers, and `pattern` with what stands before a number.
    """
    key = next((key for key in keys if account.has(key)), keys[0])
    value = account.get(key, "all-linear" if account.has(layers) else None)
    made: Any = "all-linear" if value in ALL else [value] if isinstance(value, str) else value
    if account.has(layers) and (account.has(key) or made == "all-linear"):
        numbers = account.get(layers)
        made = in_layers(made, [numbers] if isinstance(numbers, int) else numbers, account.get(pattern))
        account.set("adapter.targets", made)
        account.covered(layers, "adapter.targets")
        account.covered(pattern, "adapter.targets")
    account.take(key, "adapter.targets", value=made)
    for other in keys:
        account.passes(other, f"{key} comes first")


def in_layers(targets: Any, layers: list[int], before: Any = None) -> list[str]:
    """Patterns of the same modules in some layers alone, found by the first number in their paths.

    Args:
        targets: `all-linear`, names, or one pattern of whole paths, which stays as it is as peft reads it.
        before: patterns of what stands before the number, one or several; None: anything.
    """
    if targets != "all-linear" and len(targets) == 1 and re.search(r"[()|*\\\[]", targets[0]):
        return list(targets)
    names = [before] if isinstance(before, str) else list(before or [])
    plain = r"[^.\d][^.]*\."
    place = rf"(?:{plain})*(?:{'|'.join(names)})\." if names else f"(?:{plain}){{2,}}"
    numbers = "|".join(map(str, layers))
    ends = ["[^.]+"] if targets == "all-linear" else [re.escape(target) for target in targets]
    return [rf"{place}(?:{numbers})\.(?:.+\.)?{end}" for end in ends]
