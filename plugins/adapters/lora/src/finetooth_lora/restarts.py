"""Restarts of ReLoRA: merges layers into their base, restarts them, and writes the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetooth_hooks import RecipeError
from finetooth_peftfiles.layers import NAME
from finetooth_torchshared.whole_weights import export_weights, read_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from finetooth_lora.layers import LINEAR, initialise

EXACT = "merged_weight"
"""A layer's buffer with its base's weight in fp32."""


def check_linear(model: Any) -> None:
    """Refuse layers that a restart cannot merge.

    Raises:
        RecipeError: a layer's base is not a linear module of plain numbers.
    """
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not (
            type(module) in LINEAR and isinstance(module.get_base_layer(), torch.nn.Linear)
        ):
            raise RecipeError(
                "adapter.targets",
                f"relora cannot merge into {path}",
                action="name linear modules of the decoder layers",
            )


@torch.no_grad()
def keep_exact(model: Any) -> None:
    """Give each layer whose base computes in fewer bits than fp32 a copy of the weight in fp32; works once."""
    for _, layer in _layers(model):
        weight = layer.base_layer.weight
        if weight.dtype != torch.float32 and EXACT not in layer._buffers:
            layer.register_buffer(EXACT, weight.detach().float(), persistent=False)
        elif EXACT in layer._buffers:  # a restored state may already have it
            weight.copy_(layer._buffers[EXACT])


def merged_weights(model: Any) -> Mapping[str, Tensor]:
    """The fp32 weights into which additions are merged, by the layer's path."""
    return {path: _exact(layer) for path, layer in _layers(model)}


@torch.no_grad()
def restart(model: Any, generator: np.random.Generator) -> list[str]:
    """Merge all additions and restart them in place; returns the names of A and B of all layers."""
    names = []
    for path, layer in _layers(model):
        exact = _exact(layer)
        exact.copy_(_sum(layer))
        if exact is not layer.base_layer.weight:
            layer.base_layer.weight.copy_(exact)
        initialise(layer, generator)
        names += [f"{path}.lora_{side}.{NAME}.weight" for side in "AB"]
    return names


def write(model: Any, folder: Path) -> None:
    """Write a transformers folder, with every addition merged; the model does not change."""
    layers = dict(_layers(model))
    whole: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        path, _, rest = name.partition(".base_layer.")
        if rest == "weight" and path in layers:
            whole[f"{path}.weight"] = _sum(layers[path]).to(tensor.dtype)
        elif rest:
            whole[f"{path}.{rest}"] = tensor
        elif ".lora_" not in name:
            whole[name] = tensor
    export_weights(model, folder, whole)


@torch.no_grad()
def take_back(model: Any, folder: Path) -> None:
    """Restore the weights from a folder of `write`; the additions become zero.

    Raises:
        UserError: the folder belongs to another model.
    """
    saved = read_weights(model, folder)
    for path, layer in _layers(model):
        _exact(layer).copy_(saved[f"{path}.weight"])
        layer.base_layer.weight.copy_(saved[f"{path}.weight"])
        layer.lora_B[NAME].weight.zero_()


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in model.named_modules() if type(module) in LINEAR)


def _exact(layer: Any) -> Tensor:
    weight: Tensor = layer._buffers.get(EXACT, layer.base_layer.weight)
    return weight


@torch.no_grad()
def _sum(layer: Any) -> Tensor:
    """W + s B A in fp32."""
    a, b = layer.lora_A[NAME].weight.float(), layer.lora_B[NAME].weight.float()
    total: Tensor = _exact(layer).float() + layer.scaling[NAME] * (b @ a)
    return total
