"""The artifact of an adapter: a folder in peft's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import ModelInfo
from finetooth_modelfiles.classifiers import HEAD, PEFT_TASKS
from finetooth_modelfiles.lora_settings import check_shapes
from finetooth_toolbox.saved_heads import kind_of
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetooth_peftfiles.layers import NAME

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""peft's prefix of the names of a model's tensors."""
TUNER = "base_model."
"""peft's prefix of the names of tensors that all layers share."""


def addition_of(model: Any) -> dict[str, torch.Tensor]:
    """What an adapted model adds, by the names it has in an artifact but for `PREFIX`; the tensors are the model's."""
    # "auto" would ask the model hub whether the vocabulary grew
    addition: dict[str, torch.Tensor] = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    return addition


def write(
    model: Any,
    folder: Path,
    info: ModelInfo,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; the base is named as other tools can load it, in its
    manifest as the recipe names it.

    Args:
        tensors: what is added, where that is not what the model's layers hold; names as of `addition_of`.
        settings: of peft's config, where they differ from the model's.
    """
    addition = addition_of(model) if tensors is None else tensors
    written = {
        name if name.startswith(TUNER) else f"{PREFIX}{name}": tensor.detach().cpu().contiguous()
        for name, tensor in addition.items()
    }
    config = dict(model.peft_config[NAME].to_dict())
    config.update(base_model_name_or_path=info.published or info.reference, inference_mode=True)
    config.update(settings or {})
    if kind := kind_of(type(model).__name__):  # with a scalar head, which peft keeps next to the addition
        written |= {f"{PREFIX}{name}": tensor for name, tensor in _head(model).items()}
        config.update(task_type=PEFT_TASKS[kind], modules_to_save=[HEAD])
    save(folder, written, config)


def save(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write the two files of an artifact, the same bytes for the same content."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    # the order of a set differs between processes; the same run must give the same file
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    text = json.dumps(plain, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    # safetensors makes its files private; they are as public as those next to them
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def take(
    model: Any, tensors: dict[str, torch.Tensor], folder: Path, into: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Take an artifact's tensors into a model; `tensors` is used up.

    Args:
        into: the model's own, as of `addition_of`.

    Raises:
        UserError: they are of another choice of modules or another shape; nothing was changed.
    """
    if kind_of(type(model).__name__):
        _restore_head(model, tensors, folder)
    state = addition_of(model) if into is None else into
    check_shapes(folder, tensors, state)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[name])  # shares its memory with the model's parameter


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config of an artifact, and its tensors by the names they have in the model.

    Raises:
        UserError: the folder has no adapter.
    """
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        problem = error if folder.is_dir() else "the folder does not exist"
        raise UserError(
            f"{folder} is not a readable adapter: {problem}", action="name the artifact of a run with this adapter"
        ) from error
    return saved, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _head(model: Any) -> dict[str, torch.Tensor]:
    """Weights of a classifier's head by their names in the model."""
    return {f"{HEAD}.{n}": t.detach().cpu().contiguous() for n, t in getattr(model, HEAD).state_dict().items()}


def _restore_head(model: Any, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Take a classifier's head out of the tensors of an artifact.

    Raises:
        UserError: the artifact has none, or one of another shape.
    """
    with torch.no_grad():
        for name, parameter in getattr(model, HEAD).named_parameters():
            saved = tensors.pop(f"{HEAD}.{name}", None)
            if saved is None or saved.shape != parameter.shape:
                raise UserError(f"{folder}: it holds no head that fits", action="name the artifact of a reward model")
            parameter.copy_(saved)
