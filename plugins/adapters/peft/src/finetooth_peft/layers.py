"""Inserts peft's layers of these adapters into a model, and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from finetooth_hooks import UserError
from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.lora_settings import check_settings
from finetooth_modelfiles.targets import peft_spelling
from finetooth_peftfiles.artifact import TUNER, addition_of, read, take
from finetooth_peftfiles.layers import NAME, chosen, inject, is_linear
from peft import PeftConfig, PeftType, VeraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera.layer import VeraLayer

from finetooth_peft.blockwise import turn_by_blocks

if TYPE_CHECKING:
    from finetooth_peft.adapter import PeftAdapter


def put_in(adapter: PeftAdapter, model: Any, facts: ModelFacts) -> Any:
    """Insert the layers. Their initial values do not change the model's outputs, or are those of an earlier adapter.

    Raises:
        RecipeError: a target matches nothing, its sizes do not suit the options, or peft refuses it.
        UserError: the adapter to continue does not fit.
    """
    targets = chosen(adapter.targets, model, facts, is_linear)
    for path in targets.modules:
        module = model.get_submodule(path)
        outputs, inputs = getattr(module, "out_features", 0), getattr(module, "in_features", 0)
        if inputs:
            adapter.added(path, inputs, outputs)
    of_kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(adapter.kind)]
    config: PeftConfig = of_kind(target_modules=peft_spelling(targets), task_type="CAUSAL_LM", **adapter.settings())
    model = inject(config, model, targets, facts)
    turn_by_blocks(model)
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if name.startswith(layer.adapter_layer_names):
                # peft rounds initial values to the base's precision: these are 0, 1, or one number
                parameter.data = _begun(parameter, name, adapter)
                parameter.requires_grad_(True)
    if adapter.begins is not None:
        take_back(adapter, model, adapter.begins)
    return model


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of an artifact; matrices that all layers share occur once."""
    config = model.peft_config[NAME]
    if not isinstance(config, VeraConfig):
        return addition_of(model)
    # peft looks for the shared matrices in its own model, of which only the layers exist here
    end = f".{NAME}"
    vectors = {name.removesuffix(end): of.detach() for name, of in model.named_parameters() if ".vera_lambda_" in name}
    layer: Any = next(module for module in model.modules() if isinstance(module, VeraLayer))
    shared = {f"{TUNER}vera_A": layer.vera_A[NAME], f"{TUNER}vera_B": layer.vera_B[NAME]}
    return {**vectors, **(shared if config.save_projection else {})}


def take_back(adapter: PeftAdapter, model: Any, folder: Path) -> None:
    """Restore the trained parameters from an artifact.

    Raises:
        UserError: the artifact belongs to another adapter, or has other sizes or modules.
    """
    saved, tensors = read(folder)
    if saved.get("peft_type") != adapter.kind:
        raise UserError(
            f"{folder} holds an adapter of the kind {saved.get('peft_type')}, not {adapter.kind}",
            action="pick the adapter that it was trained with",
        )
    check_settings(saved, {name: (name, value) for name, value in adapter.settings().items()}, folder)
    take(model, tensors, folder, tensors_of(model))


def _begun(parameter: torch.Tensor, name: str, adapter: PeftAdapter) -> torch.Tensor:
    number = adapter.first_number(name)
    return parameter.data.float() if number is None else torch.full_like(parameter.data, number, dtype=torch.float32)
