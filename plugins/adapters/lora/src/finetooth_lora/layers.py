"""peft's layers in a model: put in place so that module paths of the model stay what they were."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from finetooth_hooks import RecipeError
from finetooth_hooks.protocols import LowRank, ModelFacts
from finetooth_toolbox.torch.quantised import QuantisedLinear, reads_as_numbers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers.pytorch_utils import Conv1D

from finetooth_lora.rounded_once import RoundedOnce
from finetooth_lora.targets import SETTING, resolve

if TYPE_CHECKING:
    from finetooth_lora.adapter import LoraOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
NAME = "default"
"""peft's own name for the only adapter of a model."""


def put_in(
    options: LoraOptions, model: Any, facts: ModelFacts, generator: np.random.Generator, *, token_rows: bool
) -> Any:
    """Put the layers in place. A is drawn uniformly from +-1/sqrt(inputs) (peft's kaiming uniform), B is zero, so
    the model computes as before; torch's global random state is not touched.

    Args:
        token_rows: the rows of new tokens train too.

    Raises:
        RecipeError: a target matches nothing, or peft refuses it.
    """
    paths = tuple(path for path, module in model.named_modules() if _adaptable(module))
    targets = resolve(options.targets, facts, paths)
    spelling = targets.spelling if isinstance(targets.spelling, str) else list(targets.spelling)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.resolved_alpha,  # type: ignore[arg-type]  # peft computes with floats as well
        lora_dropout=options.dropout,
        target_modules=spelling,
        use_rslora=options.rslora,
        use_dora=options.dora,
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=_token_rows(model, facts) if token_rows else None,
    )
    config._register_custom_module({QuantisedLinear: Linear})  # it calls its base, and reads no weight of it
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            # peft warns that a shared head is hard to merge; `ft merge` gives it a weight of its own
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # QuantisedLinear is registered above
            model = inject_adapter_in_model(config, model, NAME)
    except (ValueError, AttributeError) as error:  # the latter where it takes a name for that of fused experts
        said = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(SETTING, f"peft refuses these modules: {said}", action=_other_targets(facts)) from error
    missed = [path for path in targets.modules if not isinstance(model.get_submodule(path), BaseTunerLayer)]
    if missed:  # where names of experts, once modules of their own, are also those of layers without experts
        raise RecipeError(
            SETTING,
            f"peft takes {missed[0].rpartition('.')[2]} for the experts, which this model holds as one weight, and "
            f"leaves {missed[0]} alone",
            action=_other_targets(facts),
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for path in targets.modules:
        layer = model.get_submodule(path)
        if type(layer) is Linear:
            layer.__class__ = RoundedOnce  # it has all that peft made, and computes in another order
        _initialise(layer, generator)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return model


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """While entered, the model computes as its base."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def low_rank(options: LoraOptions, module: Any) -> LowRank | None:
    """What a layer adds; None with DoRA, or while dropout is on, over a quantised base, or for any other layer."""
    if type(module) not in (Linear, RoundedOnce) or options.dora or module.merged or not reads_as_numbers(module.base_layer):
        return None
    if module.disable_adapters:
        return LowRank(module.base_layer)
    if options.dropout and module.training:
        return None
    return LowRank(module.base_layer, module.lora_A[NAME].weight, module.lora_B[NAME].weight, module.scaling[NAME])


def _token_rows(model: Any, facts: ModelFacts) -> dict[str, list[int]]:
    """Rows that train by the name of their module, as peft asks for them; a tied head follows the embedding."""
    embedding = next(path for path, module in model.named_modules() if module is model.get_input_embeddings())
    ends = (embedding,) if facts.tied else (embedding, facts.head.module)
    return {path.rpartition(".")[2]: list(facts.new_tokens) for path in ends}


def _other_targets(facts: ModelFacts) -> str:
    """What can be adapted in every model."""
    return f"set adapter.targets: attention, or name modules such as {', '.join(facts.attention_targets[:4])}"


def _adaptable(module: Any) -> bool:
    """Whether peft can add to the module: linear ones (quantised ones too), embeddings, GPT-2's Conv1D."""
    return hasattr(module, "in_features") or isinstance(module, torch.nn.Embedding | Conv1D)


def _initialise(layer: Any, generator: np.random.Generator) -> None:
    """Draw the layer's new parameters and make them float32 and trainable."""
    if NAME in layer.lora_A:
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        bound = 1 / math.sqrt(a.shape[1])
        _fill(a, generator.uniform(-bound, bound, size=tuple(a.shape)))
        _fill(b, np.zeros(tuple(b.shape)))
    else:  # of an embedding, where A is the zero one
        a, b = layer.lora_embedding_A[NAME], layer.lora_embedding_B[NAME]
        _fill(a, np.zeros(tuple(a.shape)))
        _fill(b, generator.standard_normal(size=tuple(b.shape)))
    for name, parameter in layer.named_parameters():
        if name.startswith("lora_"):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def _fill(parameter: torch.nn.Parameter, values: np.ndarray[Any, Any]) -> None:
    parameter.data = torch.from_numpy(values.astype(np.float32)).to(parameter.device)
