"""Inserts peft's LoRA layers into a model without changing its module paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from finetooth_hooks import RecipeError
from finetooth_hooks.protocols import LowRank, ModelFacts
from finetooth_modelfiles.lora_settings import check_directions
from finetooth_modelfiles.targets import Targets, peft_spelling
from finetooth_peftfiles.layers import NAME, chosen, inject, is_linear
from finetooth_toolbox.llama_shape import targeted
from finetooth_toolbox.text.nearest import nearest_few
from finetooth_torchshared.float8 import Float8Linear
from finetooth_torchshared.grouped_experts import compute_in_groups
from finetooth_torchshared.quantised import DequantisingLinear, QuantisedLinear, reads_as_numbers
from finetooth_torchshared.stored_experts import with_shapes
from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import ParamWrapper

from finetooth_lora.beginnings import START, begin_from
from finetooth_lora.dora import DoraLinear
from finetooth_lora.expert_additions import ExpertAddition
from finetooth_lora.rounded_once import RoundedOnce

if TYPE_CHECKING:
    from finetooth_lora.adapter import LoraOptions

LINEAR = (Linear, RoundedOnce)
"""Layers that only add to a linear module."""


def put_in(
    options: LoraOptions, model: Any, facts: ModelFacts, generator: np.random.Generator, *, rows: Sequence[int]
) -> Any:
    """Insert the layers. A is uniform in +-1/sqrt(inputs) (peft's kaiming uniform), B is zero, so the model's outputs
    do not change; torch's global random state is not used. `options.init` may set other values, see `beginnings`.

    Args:
        rows: ids of tokens with trained rows in embedding and head.

    Raises:
        RecipeError: a target matches nothing, or peft refuses it; or, with DoRA, a row of a weight is zero, without a
            direction.
    """
    targets = chosen(options.targets, model, facts, _adaptable) if options.targets else Targets((), ())
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.resolved_alpha,  # type: ignore[arg-type]  # peft computes with floats as well
        # a weight with an addition before the multiplication has no input for dropout; linear modules get it below
        lora_dropout=0.0 if options.target_parameters else options.dropout,
        target_modules=peft_spelling(targets),
        target_parameters=list(options.target_parameters) or None,
        use_rslora=options.rslora,
        use_dora=options.dora,
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=_token_rows(model, facts, rows) if rows else None,
    )
    config._register_custom_module({QuantisedLinear: Linear})  # it calls its base, and reads no weight
    with with_shapes(model):
        _check_parameters(options.target_parameters, model)
        model = inject(config, model, targets, facts)
    for path in targets.modules:
        layer = model.get_submodule(path)
        if type(layer) is Linear:
            layer.__class__ = RoundedOnce  # it keeps peft's attributes, and computes in another order
        initialise(layer, generator)
    for path, lengths in [(path, of) for path, of in model.named_modules() if isinstance(of, DoraLinearLayer)]:
        if not lengths.weight.is_meta:
            check_directions(path.partition(".lora_magnitude_vector")[0], lengths.weight.detach().float().cpu().numpy())
        if type(lengths) is DoraLinearLayer:
            lengths.__class__ = DoraLinear
    for layer in [module for module in model.modules() if isinstance(module, ParamWrapper)]:
        layer.__class__ = ExpertAddition
        compute_in_groups(layer.get_base_layer())
        initialise(layer, generator)
    if options.target_parameters and options.dropout:
        for path in targets.modules:
            model.get_submodule(path).lora_dropout[NAME] = torch.nn.Dropout(options.dropout)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if options.init == "pissa" or options.init == "olora":
        for path in targets.modules:
            begin_from(options.init, path, model.get_submodule(path), options.svd_iterations, generator)
    return model


def added_to_linear(model: Any) -> dict[str, Any]:
    """Layers over linear modules, by path."""
    return {path: module for path, module in model.named_modules() if type(module) in LINEAR and NAME in module.lora_A}


def low_rank(options: LoraOptions, module: Any) -> LowRank | None:
    """The low-rank form of a layer; None over a base that can only be called, or for another layer. While dropout is
    on, also with DoRA, where peft drops from the base's input too, and with a frozen pair, which drops nothing."""
    if type(module) not in LINEAR or module.merged:
        return None
    base: Any = module.base_layer
    if isinstance(base, Float8Linear) or not (isinstance(base, DequantisingLinear) or reads_as_numbers(base)):
        return None
    if module.disable_adapters:
        return LowRank(module.base_layer)
    drops = bool(options.dropout) and module.training
    if drops and (options.dora or START in module.lora_A):
        return None
    adapted: Any = module
    a, b = adapted.lora_A[NAME].weight, adapted.lora_B[NAME].weight
    if START in module.lora_A:
        a = torch.cat([a, adapted.lora_A[START].weight.to(a.dtype)])
        b = torch.cat([b, adapted.lora_B[START].weight.to(b.dtype)], 1)
    magnitude = adapted.lora_magnitude_vector[NAME].weight if options.dora else None
    dropout = adapted.lora_dropout[NAME] if drops else None
    return LowRank(module.base_layer, a, b, module.scaling[NAME], magnitude, dropout)


def _token_rows(model: Any, facts: ModelFacts, rows: Sequence[int]) -> dict[str, list[int]]:
    """Trained rows by the name of their module, in peft's form; a tied head follows the embedding."""
    embedding = next(path for path, module in model.named_modules() if module is model.get_input_embeddings())
    ends = (embedding,) if facts.tied else (embedding, facts.head.module)
    return {path.rpartition(".")[2]: list(rows) for path in ends}


def _check_parameters(targets: Sequence[str], model: Any) -> None:
    """
    Raises:
        RecipeError: a target names no parameter, or one that is a single matrix.
    """
    setting = "adapter.target_parameters"
    shapes = {name: parameter.dim() for name, parameter in model.named_parameters() if parameter.dim() in (2, 3)}
    for target in targets:
        if not any(targeted(name, (target,)) for name in shapes):
            ends = sorted({".".join(name.split(".")[-2:]) for name, sizes in shapes.items() if sizes == 3})
            near = nearest_few(target, ends, 3) or ends[:3]
            cure = (
                f"name one such as {', '.join(near)}" if near else "leave it out: this model holds none as one weight"
            )
            raise RecipeError(setting, f"{target!r} names no weight of this model", action=cure)
        linear = target.rpartition(".")[0].rpartition(".")[2] if target.endswith(".weight") else ""
        if linear:
            raise RecipeError(
                setting, f"{target!r} is a module's own weight", action=f"add {linear} to adapter.targets"
            )


def _adaptable(module: Any) -> bool:
    """Whether peft can add to the module: linear ones (quantised ones too), embeddings, convolutions."""
    convolutions = torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d
    return is_linear(module) or isinstance(module, torch.nn.Embedding | convolutions)


def initialise(layer: Any, generator: np.random.Generator) -> None:
    """Set random initial values of the layer's new parameters, as float32, and make them trainable."""
    if NAME in layer.lora_A:
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        bound = 1 / math.sqrt(a[0].numel())  # for a convolution the sum includes its window
        _fill(a, generator.uniform(-bound, bound, size=tuple(a.shape)))
        _fill(b, np.zeros(tuple(b.shape)))
    else:  # an embedding, with A zero
        a, b = layer.lora_embedding_A[NAME], layer.lora_embedding_B[NAME]
        _fill(a, np.zeros(tuple(a.shape)))
        _fill(b, generator.standard_normal(size=tuple(b.shape)))
    for name, parameter in layer.named_parameters():
        if name.startswith("lora_"):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def _fill(parameter: torch.Tensor, values: np.ndarray[Any, Any]) -> None:
    made = torch.from_numpy(values.astype(np.float32)).to(parameter.device)
    if parameter.dtype == made.dtype and parameter.shape == made.shape:
        parameter.data.copy_(made)  # keeps references to the tensor valid
    else:
        parameter.data = made
