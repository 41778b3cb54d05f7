"""Facts of models with a config like Llama's, for their families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Block, Experts, Head, LayerFacts, ModelFacts

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
"""Names of activations in a `Block`, by `hidden_act` of a config."""

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary scaling whose angles do not depend on the present sequence length."""


def llama_facts(
    config: Mapping[str, Any], *, renderer: Pick, max_positions: int, block: Mapping[str, Any] | None = None
) -> ModelFacts:
    """Facts from a config with Llama's names.

    Args:
        renderer: the family's.
        max_positions: used if the config has no value.
        block: see `llama_block`.
    """
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return ModelFacts(
        hidden_size=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        ffn_size=int(config["intermediate_size"]),
        vocab_size=int(config["vocab_size"]),
        max_positions=longest_row(config, max_positions),
        layer_path="model.layers",
        body="model",
        head=Head("lm_head"),
        attention_targets=ATTENTION,
        linear_targets=ATTENTION + MLP,
        renderer=renderer,
        tied=bool(config.get("tie_word_embeddings", False)),
        block=llama_block(config, **(block or {})),
    )


def longest_row(config: Mapping[str, Any], otherwise: int) -> int:
    """Positions of the longest sequence. With `dynamic` scaling, the config has only the original number.

    Args:
        otherwise: used if the config has no value.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor = scaling.get("factor", 1) if scaling.get("rope_type", scaling.get("type")) == "dynamic" else 1
    return int((config.get("max_position_embeddings") or otherwise) * factor)


def linear_shapes(facts: ModelFacts) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a decoder layer's linear modules by name, for layers built like Llama's; fused ones as in
    Phi-3."""
    hidden, ffn = facts.hidden_size, facts.ffn_size
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, ffn),
        "up_proj": (hidden, ffn),
        "down_proj": (ffn, hidden),
        "qkv_proj": (hidden, queries + 2 * keys),
        "gate_up_proj": (hidden, 2 * ffn),
    }


def layer_matrices(facts: ModelFacts) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear module of the decoder layers that adapters may train and whose shape follows
    from the facts."""
    if facts.per_layer:
        modules = [module for layer in facts.per_layer for module in linears(layer).items()]
        return [shape for path, shape in modules if targeted(path, facts.linear_targets)]
    shapes = linear_shapes(facts)
    return [shapes[name] for of in facts.linear_targets if (name := of.rsplit(".", 1)[-1]) in shapes] * facts.layers


def layer_weights(facts: ModelFacts) -> int:
    """Number of weights in the matrices of all decoder layers, with experts, as far as the facts determine them."""
    if not facts.per_layer:
        return sum(inputs * outputs for inputs, outputs in layer_matrices(facts))
    total = sum(inputs * outputs for layer in facts.per_layer for inputs, outputs in linears(layer).values())
    experts = [layer.experts for layer in facts.per_layer if layer.experts]
    return total + facts.hidden_size * sum(of.count * (1 + (2 + of.gated) * of.width) for of in experts)


def linears(layer: LayerFacts) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a layer's linear modules, by their paths in it."""
    return {**layer.mixing, **layer.feed_forward}


def targeted(path: str, names: Iterable[str]) -> bool:
    """Whether the path of a module equals or ends with one of some names, as for `linear_targets`."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def layer_of(facts: ModelFacts, *, window: int = 0, experts: Experts | None = None) -> LayerFacts:
    """A layer with attention of the model's sizes.

    Args:
        window: number of visible positions; 0: all.
        experts: experts instead of a feed-forward block of the model's size.
    """
    shapes = linear_shapes(facts)
    return LayerFacts(
        "window" if window else "attention",
        {f"self_attn.{name}": shapes[name] for name in ATTENTION},
        {} if experts is not None else {f"mlp.{name}": shapes[name] for name in MLP},
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        window=window,
        ffn_size=0 if experts is not None else facts.ffn_size,
        experts=experts,
    )


def windowed_layers(
    facts: ModelFacts, config: Mapping[str, Any], experts: Experts | None = None
) -> tuple[LayerFacts, ...]:
    """Layers of a config with windows on the layers that `layer_types` marks, or on all layers if it has a window and
    no types."""
    window = int(config.get("sliding_window") or 0)
    kinds = config.get("layer_types") or ["sliding_attention" if window else "full_attention"] * facts.layers
    return tuple(
        layer_of(facts, window=window if kind == "sliding_attention" else 0, experts=experts) for kind in kinds
    )


def cached_numbers(facts: ModelFacts) -> int:
    """Count of numbers in the keys and values of a token in all layers."""
    if facts.per_layer:
        return sum(layer.kv_heads * (layer.head_dim + (layer.value_dim or layer.head_dim)) for layer in facts.per_layer)
    return 2 * facts.layers * facts.kv_heads * facts.head_dim


HEAD_NORMS: Mapping[str, Any] = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
"""Fields of a `Block` with normalised queries and keys."""


FUSED_MLP: Mapping[str, Any] = {"gate": "mlp.gate_up_proj", "up": ""}
"""Fields of a `Block` with gate and up as one module."""


def llama_block(config: Mapping[str, Any], *, windows: bool = False, **named: Any) -> Block | None:
    """The computation of the layers; None if a `Block` cannot describe the config: attention dropout, a sliding window,
    an unknown activation, angles that change with the length.

    Args:
        windows: the family's facts already describe windows, so the block need not.
        named: further fields of `Block`.
    """
    activation = ACTIVATIONS.get(str(config.get("hidden_act", "silu")))
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_kind = [of for of in rotary.values() if isinstance(of, Mapping)] or [rotary]
    fixed = all(of.get("rope_type", of.get("type", "default")) in FIXED_ROTARY for of in by_kind)
    windowed = not windows and config.get("sliding_window") and config.get("use_sliding_window", True)
    if activation is None or config.get("attention_dropout") or windowed or not fixed:
        return None
    return Block(**{"eps": float(config.get("rms_norm_eps", 1e-6)), "activation": activation, **named})
