"""The artifact of a LoRA: a folder in peft's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetooth_hooks import UserError
from finetooth_hooks.protocols import Addition, ModelInfo
from finetooth_modelfiles.lora_settings import check_settings, scale_of, special_setting
from finetooth_peftfiles import artifact
from finetooth_peftfiles.layers import NAME

from finetooth_lora.beginnings import doubled, halved, started, trained_of

A, B = ".lora_A.weight", ".lora_B.weight"
"""Endings of names of an addition's matrices, after the path of their module."""


def write(model: Any, folder: Path, info: ModelInfo) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; they have the base's name for other tools, the
    manifest has the recipe's name."""
    addition = trained_of(artifact.addition_of(model))
    if not started(model):
        artifact.write(model, folder, info, tensors=addition)
        return
    tensors, settings = doubled(model, addition)
    artifact.write(model, folder, info, tensors=tensors, settings=settings)


def take_back(model: Any, folder: Path) -> None:
    """Restore the addition from an artifact.

    Raises:
        UserError: the folder has no adapter, or one of another rank, scale, kind or choice of modules.
    """
    saved, tensors = artifact.read(folder)
    config = model.peft_config[NAME]
    rank, alpha = config.r, config.lora_alpha
    if started(model):
        _, settings = doubled(model, {})
        rank, alpha = settings["r"], settings["lora_alpha"]
    wanted = {
        "r": ("rank", rank),
        "lora_alpha": ("alpha", alpha),
        "use_rslora": ("rslora", config.use_rslora),
        "use_dora": ("dora", config.use_dora),
    }
    check_settings(saved, wanted, folder)
    if special := special_setting(saved):
        raise UserError(
            f"{folder}: it was made with {special}, which adapter lora does not compute",
            action="merge it into its base instead: ft merge",
        )
    artifact.take(model, halved(model, tensors), folder, trained_of(artifact.addition_of(model)))


def additions(folder: Path) -> dict[str, Addition] | None:
    """The additions of a plain low-rank artifact, by module; None for other adapters.

    Raises:
        UserError: the artifact cannot be read.
    """
    saved, tensors = artifact.read(folder)
    plain = saved.get("peft_type") == "LORA" and not special_setting(saved)
    others = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")
    if not plain or any(saved.get(name) for name in others):
        return None
    scale = scale_of(saved)
    paths = {name.removesuffix(A) for name in tensors if name.endswith(A)}
    if {path + side for path in paths for side in (A, B)} != tensors.keys():
        return None
    return {path: Addition(tensors[path + A], tensors[path + B], scale) for path in sorted(paths)}
