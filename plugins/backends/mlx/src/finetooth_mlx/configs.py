"""Translates a config of transformers for mlx-lm's model classes.

Those classes ignore unknown keys and fill in their own defaults. This module refuses a config that a class would not
compute, before any weight is read.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from finetooth_hooks import RecipeError

ACTIVATIONS = ("silu", "swish", None)
"""What classes of the Llama kind always compute, even if the config differs."""
WINDOWED = ("gemma2", "mistral", "phi3")
"""Types of models whose windows `completing` adds to mlx-lm's classes."""
OTHERWISE = ("falcon_h1", "ernie4_5_moe")
"""Types of models whose classes compute other numbers than transformers, as `test_mlx_families` found."""
LLAMA_KIND = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def classes_of(config: Mapping[str, Any], reference: str) -> tuple[Any, Any]:
    """The classes of the model and of its arguments.

    Raises:
        RecipeError: mlx-lm has none for this type of model.
    """
    from mlx_lm.utils import MODEL_REMAPPING

    kind = str(config["model_type"])
    try:
        module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    except ImportError as error:
        raise RecipeError(
            "model",
            f"{reference} is of the type {kind}, for which mlx-lm has no model class",
            action="set backend: torch, or choose another model",
        ) from error
    return module.Model, module.ModelArgs


def mlx_config(config: Mapping[str, Any], reference: str) -> dict[str, Any]:
    """The config with transformers' defaults, as mlx-lm's class reads it.

    Raises:
        RecipeError: the class does not compute something in the config.
    """
    _, arguments = classes_of(config, reference)
    parameters = inspect.signature(arguments).parameters
    takes, kind = set(parameters), str(config["model_type"])
    if kind in OTHERWISE:
        raise RecipeError(
            "model", f"{reference} is of the type {kind}, for which mlx-lm computes other numbers than transformers",
            action="set backend: torch",
        )  # fmt: skip
    if isinstance(config.get("text_config"), Mapping):
        raise RecipeError(
            "model", f"{reference} ({kind}) reads more than text, and the MLX backend trains models of text alone",
            action="name its text model if there is one, or set backend: torch",
        )  # fmt: skip
    made = {name: value for name, value in config.items() if value is not None}
    for rope in (made.get("rope_parameters"), made.get("rope_scaling")):
        scaling = rope.get("rope_type", rope.get("type")) if isinstance(rope, Mapping) else None
        if scaling in ("dynamic", "longrope"):
            raise _refused(reference, f"rotary angles by the length of each row ({scaling})")
    rope = made.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_parameters" not in takes:
        local = rope.get("sliding_attention")
        if "rope_local_base_freq" in takes and isinstance(local, Mapping):
            made |= {**_rope(rope["full_attention"], reference), "rope_local_base_freq": local["rope_theta"]}
        else:
            made |= _rope(rope, reference)
    activation = config.get("hidden_act")
    if kind in LLAMA_KIND and activation not in ACTIVATIONS:
        raise _refused(reference, f"the activation {activation}")
    layers = config.get("layer_types") or ()
    sliding = "sliding_attention" in layers or (config.get("sliding_window") and not layers)
    if sliding and kind not in WINDOWED and not takes & {"layer_types", "sliding_window_pattern"}:
        raise _refused(reference, "layers with a sliding window")
    if layers and kind == "gemma3_text":
        every = layers.index("full_attention") + 1 if "full_attention" in layers else len(layers) + 1
        if list(layers) != ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(len(layers))]:
            raise _refused(reference, "layers with a sliding window in no regular order")
        made["sliding_window_pattern"] = every
    needed = {name for name, of in parameters.items() if of.default is of.empty} - made.keys()
    made |= dict.fromkeys(needed & {*config, "rope_scaling"})
    if "num_experts" in needed and "num_local_experts" in made:
        made["num_experts"] = made["num_local_experts"]
    if lacking := sorted(needed - made.keys()):
        raise RecipeError(
            "model", f"{reference} has a config without {lacking[0]}, which mlx-lm's class of this model needs",
            action="set backend: torch",
        )  # fmt: skip
    return made


def _rope(rope: Mapping[str, Any], reference: str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from the newer `rope_parameters`."""
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise _refused(reference, "rotary embeddings that differ by kind of layer")
    kind = rope.get("rope_type", "default")
    scaling = {name: value for name, value in rope.items() if name != "rope_theta" and value is not None}
    settings: dict[str, Any] = {} if rope.get("rope_theta") is None else {"rope_theta": rope["rope_theta"]}
    if kind != "default":
        settings["rope_scaling"] = {**scaling, "type": kind}
    elif rope.get("partial_rotary_factor", 1.0) != 1.0:
        settings["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return settings


def _refused(reference: str, what: str) -> RecipeError:
    return RecipeError(
        "model", f"{reference} has {what}, which mlx-lm's class of this model does not compute",
        action="set backend: torch",
    )  # fmt: skip
