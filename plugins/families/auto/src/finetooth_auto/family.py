"""The family `auto`: builds the model without memory and looks where its layers, its body and its head are.

What a module tree cannot show is taken from the config under the names that model families use for it: how the head
scales its logits and whether it caps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from finetooth_hooks import RecipeError
from finetooth_hooks.protocols import Head, ModelFacts
from finetooth_toolbox.llama_shape import longest_row
from transformers.pytorch_utils import Conv1D

ATTENTION_NAMES = ("attn", "attention")
MODELS: Any = transformers.AutoModelForCausalLM
MULTIMODAL: Any = transformers.AutoModelForMultimodalLM
LINEAR = (torch.nn.Linear, Conv1D)
LOST, ROUTERS = ("out_proj", "dt_proj"), ("gate", "router")
HEAD_DIM = 64
"""Said of a model without attention: nothing is computed by it."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names that configs give the cap of logits."""
WITH_TOWERS = ("vision_config", "audio_config")
"""Settings of a model that sees or hears."""
MULTIPLIES = ("hyperclovax",)
"""Model types whose `logits_scaling` multiplies."""


class Auto:
    """The family `auto`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, found in the model that its config describes.

        Raises:
            RecipeError: transformers knows no causal model of this type, or it is not built of layers and a linear
                head.
        """
        settings, model = _built(config)
        layer_path, layers = _layers(model, settings.num_hidden_layers, model.get_decoder())
        body = _body(model, layer_path)
        towers = _towers(model, body, layer_path)
        attention, linear, untargeted = _targets(layers)
        heads = getattr(settings, "num_attention_heads", None)
        if heads is None and not attention:
            heads = int(settings.hidden_size) // HEAD_DIM or 1
        if not isinstance(heads, int):
            raise _unknown_error(model, "no single number of attention heads")
        return ModelFacts(
            hidden_size=int(settings.hidden_size),
            layers=len(layers),
            heads=heads,
            kv_heads=int(getattr(settings, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(settings, "head_dim", None) or settings.hidden_size // heads),
            ffn_size=_ffn_size(layers, settings),
            vocab_size=int(settings.vocab_size),
            max_positions=_longest_row(settings),
            layer_path=layer_path,
            body=body,
            head=_head(model, settings),
            attention_targets=attention,
            linear_targets=linear,
            untargeted=untargeted,
            renderer="jinja",
            tied=bool(getattr(settings, "tie_word_embeddings", False)),
            towers=towers,
            tower_parameters=sum(p.numel() for path in towers for p in model.get_submodule(path).parameters()),
        )


def _longest_row(settings: Any) -> int:
    """Some types call the number of their positions otherwise in a config's file."""
    stated = getattr(settings, "max_position_embeddings", None)
    return longest_row({**settings.to_dict(), "max_position_embeddings": stated}, 2048)


def _built(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The config object and the model on the meta device."""
    kind = str(config.get("model_type", ""))
    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        settings = transformers.AutoConfig.for_model(kind, **values)
        with torch.device("meta"):
            model = _class(settings).from_config(settings)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise RecipeError(
            "model.family",
            f"transformers builds no causal language model of type {kind!r}: {reason}",
            action="choose another model, or install a plugin with its family",
        ) from error
    return settings.get_text_config(), model


def _class(settings: Any) -> Any:
    """The auto class that builds the model its config names: one that sees or hears, if that is what it is."""
    known = MULTIMODAL._model_mapping.get(type(settings), None)
    named = (getattr(settings, "architectures", None) or [getattr(known, "__name__", "")])[0]
    return MULTIMODAL if known is not None and known.__name__ == named else MODELS


def _body(model: Any, layer_path: str) -> str:
    """Path of what computes the last hidden states. Llama 4 without images names a part that only the whole one has."""
    prefix = str(model.base_model_prefix)
    return prefix if hasattr(model, prefix) else layer_path.rpartition(".")[0]


def _towers(model: Any, body: str, layer_path: str) -> tuple[str, ...]:
    """Paths of the modules other than the decoder that read images or sound: in the body; where that is the decoder
    itself, what it has beyond layers, embedding and norm (Phi-4), or what stands next to what it is in (Llama 4)."""
    decoder = model.get_decoder()
    around = model.get_submodule(body)
    if decoder is not around and any(module is decoder for module in around.modules()):
        return _apart(around, f"{body}.", decoder)
    if not any(getattr(model.config, name, None) for name in WITH_TOWERS):
        return ()
    usual = (model.get_submodule(layer_path), model.get_input_embeddings())
    return _apart(around, f"{body}.", *usual) or _apart(model, "", around, model.get_output_embeddings())


def _apart(around: Any, prefix: str, *others: Any) -> tuple[str, ...]:
    """Paths of the children with matrices that are none of the others, and hold none of them."""
    return tuple(
        f"{prefix}{name}"
        for name, child in around.named_children()
        if not any(module is other for module in child.modules() for other in others)
        and any(parameter.ndim > 1 for parameter in child.parameters())
    )


def _layers(model: Any, count: int, decoder: Any) -> tuple[str, Any]:
    """Path and modules of the decoder layers: the list of the stated length that holds the most parameters; inside the
    decoder, where a model has other parts."""
    inside = {id(module) for module in decoder.modules()}
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), path, module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and id(module) in inside
    ]
    if not lists:
        raise _unknown_error(model, f"no list of its {count} layers")
    _, path, module = max(lists, key=lambda entry: (entry[0], -len(entry[1])))
    return path, module


def _head(model: Any, settings: Any) -> Head:
    """The linear module that makes logits, with the factor and the cap that the config states.

    Config names: `logit_scale` (Cohere) and `lm_head_multiplier` (Falcon-H1) multiply, `logits_scaling` divides
    (Granite; in HyperCLOVA X it multiplies), one of `CAPS` caps (Gemma 2, RecurrentGemma, xLSTM).
    """
    head = model.get_output_embeddings()
    path = next((path for path, module in model.named_modules() if module is head), None)
    if path is None or not isinstance(head, torch.nn.Linear):
        raise _unknown_error(model, "no linear head")
    factor, multiplier, divisor = (
        float(getattr(settings, name, None) or 1.0) for name in ("logit_scale", "lm_head_multiplier", "logits_scaling")
    )
    scale = factor * multiplier * (divisor if settings.model_type in MULTIPLIES else 1.0 / divisor)
    cap = next((value for name in CAPS if (value := getattr(settings, name, None)) is not None), None)
    return Head(path, scale, None if cap is None else float(cap))


def _targets(layers: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of linear modules of the layers: those inside attention, all that adapters may change, and those they must
    leave alone.

    The last are projections of Mamba, of its outputs and of its time steps: its kernels, or its own code, take their
    weight and never call the module, so an addition to it would be lost; and routers with a forward of their own, as
    Llama 4's, which gives two values.
    """
    linear = [path for path, module in layers.named_modules() if isinstance(module, LINEAR)]
    mixers = {path for path, module in layers.named_modules() if hasattr(module, "A_log") and hasattr(module, "conv1d")}
    lost = [
        path
        for path in linear
        if (path.rpartition(".")[2] in LOST and path.rpartition(".")[0] in mixers)
        or (path.rpartition(".")[2] in ROUTERS and type(layers.get_submodule(path)).forward != torch.nn.Linear.forward)
    ]
    adaptable = [path for path in linear if path not in lost]
    if not adaptable:
        raise _unknown_error(layers, "no linear module in its layers")
    inside = [path for path in adaptable if _in_attention(layers, path)]
    outside = {path.rpartition(".")[2] for path in linear if path not in inside}
    # a name that also occurs outside attention is told apart by the module that holds it (GPT-2's attn.c_proj)
    attention = dict.fromkeys(
        ".".join(parts[-2:]) if parts[-1] in outside else parts[-1] for parts in (path.split(".") for path in inside)
    )
    named = dict.fromkeys(path.rpartition(".")[2] for path in adaptable)
    left = dict.fromkeys(path.rpartition(".")[2] for path in lost)
    return tuple(attention), tuple(named), tuple(name for name in left if name not in named)


def _in_attention(layers: Any, path: str) -> bool:
    """A module that holds it is called attention, by its name or by its class (in Nemotron-H all are mixers)."""
    parts = path.split(".")[:-1]
    if any(word in part.lower() for part in parts for word in ATTENTION_NAMES):
        return True
    holders = (layers.get_submodule(".".join(parts[:end])) for end in range(1, len(parts) + 1))
    return any(type(holder).__name__.endswith("Attention") for holder in holders)


def _ffn_size(layers: Any, settings: Any) -> int:
    """The widest linear output of a layer, unless the config states it."""
    stated = getattr(settings, "intermediate_size", None)
    if isinstance(stated, int):
        return stated
    widths = [module.weight.shape for _, module in layers[0].named_modules() if isinstance(module, LINEAR)]
    return int(max(max(shape) for shape in widths))


def _unknown_error(model: Any, lacks: str) -> RecipeError:
    return RecipeError(
        "model.family",
        f"family auto does not understand {type(model).__name__}: it has {lacks}",
        action="install a plugin with its family, or choose another model",
    )
