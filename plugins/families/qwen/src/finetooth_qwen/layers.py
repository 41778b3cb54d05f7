"""The layers of Qwen's mixtures and hybrids, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import Experts, LayerFacts, ModelFacts
from finetooth_toolbox.llama_shape import layer_of

INTERVAL = 4
"""Of so many layers of a hybrid one attends to everything, where its config does not list them."""
LINEAR_SIZES = {
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
"""Of linear attention, where a config does not say."""


def layers_of(facts: ModelFacts, kind: str, text: Mapping[str, Any]) -> tuple[LayerFacts, ...]:
    """Facts of each layer.

    Args:
        kind: `model_type` of the text model.
        text: its config.
    """
    hybrid = not kind.startswith("qwen3_moe")
    kinds = text.get("layer_types")
    interval = int(text.get("full_attention_interval") or INTERVAL)
    layers = []
    for number in range(facts.layers):
        experts = _experts(text) if _is_sparse(text, number) else None
        layer = _with_shared(layer_of(facts, experts=experts), facts.hidden_size)
        if hybrid:  # each head has a gate, which the query's module gives too
            hidden, queries = layer.mixing["self_attn.q_proj"]
            layer = replace(layer, mixing={**layer.mixing, "self_attn.q_proj": (hidden, 2 * queries)})
        linear = kinds[number] == "linear_attention" if kinds else hybrid and (number + 1) % interval
        layers.append(_linear(layer, kind, text, facts.hidden_size) if linear else layer)
    return tuple(layers)


def _is_sparse(text: Mapping[str, Any], number: int) -> bool:
    """Whether a layer has experts in place of a feed-forward block."""
    if not _count(text) or number in (text.get("mlp_only_layers") or ()):
        return False
    return (number + 1) % int(text.get("decoder_sparse_step") or 1) == 0


def _count(text: Mapping[str, Any]) -> int:
    return int(text.get("num_experts") or text.get("num_local_experts") or 0)


def _experts(text: Mapping[str, Any]) -> Experts:
    shared = int(text.get("shared_expert_intermediate_size") or 0)
    active, width = int(text["num_experts_per_tok"]), int(text["moe_intermediate_size"])
    return Experts(_count(text), active, width, shared=shared, balanced=True)


def _with_shared(layer: LayerFacts, hidden: int) -> LayerFacts:
    """With the modules of the expert that computes every token, and of its gate."""
    if layer.experts is None or not (width := layer.experts.shared):
        return layer
    shapes = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    modules = {f"mlp.shared_expert.{name}": shape for name, shape in shapes.items()}
    return replace(layer, feed_forward={**modules, "mlp.shared_expert_gate": (hidden, 1)})


def _linear(layer: LayerFacts, kind: str, text: Mapping[str, Any], hidden: int) -> LayerFacts:
    """The same with a gated delta net in place of attention."""
    key_heads, heads, key_dim, head_dim = (int(text.get(name) or usual) for name, usual in LINEAR_SIZES.items())
    keys, values = key_heads * key_dim, heads * head_dim
    if kind == "qwen3_next":
        outputs = {"in_proj_qkvz": 2 * keys + 2 * values, "in_proj_ba": 2 * heads}
    else:
        outputs = {"in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_b": heads, "in_proj_a": heads}
    mixing = {f"linear_attn.{name}": (hidden, width) for name, width in outputs.items()}
    return replace(
        layer,
        mixer="linear",
        mixing={**mixing, "linear_attn.out_proj": (values, hidden)},
        heads=0,
        kv_heads=0,
        head_dim=0,
        state=heads * key_dim * head_dim,
    )
