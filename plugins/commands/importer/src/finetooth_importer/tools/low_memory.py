"""Optimizers whose states are projected to a low rank: their options by the names of transformers' `optim_args`."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from finetooth_importer.account import Account, number

OPTIONS: Mapping[str, str] = {"rank": "rank", "update_proj_gap": "update_every", "scale": "scale"}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "galore": {"rank": 128, "update_proj_gap": 200, "scale": 0.25},
    "galore_8bit": {"rank": 128, "update_proj_gap": 200, "scale": 0.25},
    "apollo": {"rank": 128, "update_proj_gap": 200, "scale": 1.0},
}
"""What transformers takes where `optim_args` says nothing."""
FIXED: Mapping[str, Any] = {"proj": "random", "proj_type": "std", "scale_type": "channel"}
"""Further options, with the value that means what is done here."""
EVERYWHERE = ("attn", "mlp", "all-linear", "all_linear", "attention")
"""Words of `optim_target_modules` that mean all matrices inside layers, which are the ones that are projected here."""


def scale_of(optimizer: str, scale: Any) -> Any:
    """Their `scale` as our option: apollo-torch multiplies by its root, as the paper does by that of alpha."""
    value = number(scale)
    return round(sqrt(value), 6) if optimizer == "apollo" and isinstance(value, int | float) else value


def arguments(account: Account, optimizer: str) -> None:
    """Take `optim_args`, a text or a mapping, and `optim_target_modules`.

    Args:
        optimizer: as it is called here.
    """
    options = account.get("optim_args", {})
    if isinstance(options, str):
        options = {key.strip(): value.strip() for key, _, value in (pair.partition("=") for pair in options.split(","))}
    if optimizer not in DEFAULTS or not isinstance(options, Mapping):
        account.refuse("optim_args", "give the optimizer its options: ft plugins explain NAME", unless={})
    else:
        for theirs, value in {**DEFAULTS[optimizer], **options}.items():
            if theirs in OPTIONS:
                made = scale_of(optimizer, value) if theirs == "scale" else number(value)
                account.set(f"optimizer.{OPTIONS[theirs]}", int(made) if theirs != "scale" else made)
        others = sorted(key for key, value in options.items() if key not in OPTIONS and value != FIXED.get(key))
        if others:
            account.refuse("optim_args", f"rank, update_proj_gap and scale are taken, but not {', '.join(others)}")
        account.covered("optim_args", "optimizer")
        if not account.has("optim_args"):
            account.inside("optim_args", dict(DEFAULTS[optimizer]), "default", "optimizer")
    modules = account.get("optim_target_modules", [])
    named = [modules] if isinstance(modules, str) else modules
    if isinstance(named, list) and all(str(module) in EVERYWHERE for module in named):
        account.passes("optim_target_modules", "all matrices inside layers are projected")
    account.refuse("optim_target_modules", "all matrices inside layers are projected, not only these")
