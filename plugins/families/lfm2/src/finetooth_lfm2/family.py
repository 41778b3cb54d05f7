"""Facts of LFM2 models: dense ones (`model_type: lfm2`) and mixtures of experts (`lfm2_moe`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import Experts, LayerFacts, ModelFacts
from finetooth_toolbox.llama_shape import layer_of, llama_facts

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP = ("w1", "w2", "w3")
EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
CONVOLUTION = "in_proj"
"""Into a short convolution; the way out of it is called as attention's."""


class LFM2:
    """The family `lfm2`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Embeddings are tied unless the config says otherwise. No block: some layers have a short convolution in place of
        attention.
        """
        facts = llama_facts(config, renderer="lfm2", max_positions=128_000)
        tied = bool(config.get("tie_word_embeddings", config.get("tie_embedding", True)))
        linear = (*ATTENTION, *MLP, *([CONVOLUTION] if _convolves(config) else []))
        facts = replace(facts, ffn_size=_ffn_size(config), attention_targets=ATTENTION, linear_targets=linear)
        layers = tuple(_layer(facts, config, number) for number in range(facts.layers))
        return replace(facts, tied=tied, block=None, per_layer=layers)


def _layer(facts: ModelFacts, config: Mapping[str, Any], number: int) -> LayerFacts:
    hidden, width, experts = facts.hidden_size, facts.ffn_size, None
    if config.get("model_type") == "lfm2_moe" and number >= int(config.get("num_dense_layers", 2)):
        count, active, inner = (int(config[key]) for key in EXPERTS)
        experts, width = Experts(count, active, inner, router="feed_forward.gate"), 0
    block = {"w1": (hidden, width), "w3": (hidden, width), "w2": (width, hidden)} if experts is None else {}
    feed_forward = {f"feed_forward.{name}": shape for name, shape in block.items()}
    if not _attends(config, number):
        mixing = {"conv.in_proj": (hidden, 3 * hidden), "conv.out_proj": (hidden, hidden)}
        return LayerFacts("convolution", mixing, feed_forward, ffn_size=width, experts=experts)
    layer = layer_of(facts)
    mixing = {path.replace("o_proj", "out_proj"): shape for path, shape in layer.mixing.items()}
    return replace(layer, mixing=mixing, feed_forward=feed_forward, ffn_size=width, experts=experts)


def _attends(config: Mapping[str, Any], number: int) -> bool:
    """Whether a layer has attention, and not a convolution."""
    kinds, attends = config.get("layer_types"), config.get("full_attn_idxs")
    if kinds is not None:
        return bool(kinds[number] != "conv")
    return attends is None or number in attends


def _convolves(config: Mapping[str, Any]) -> bool:
    """Some layer has a convolution."""
    return not all(_attends(config, number) for number in range(int(config["num_hidden_layers"])))


def _ffn_size(config: Mapping[str, Any]) -> int:
    """Dense models make of the size in the config two thirds of it, rounded up to a multiple."""
    size = int(config["intermediate_size"])
    if config.get("model_type") != "lfm2" or not config.get("block_auto_adjust_ff_dim", True):
        return size
    size, multiple = 2 * size // 3, int(config.get("block_multiple_of") or 256)
    multiplier = config.get("block_ffn_dim_multiplier", 1.0)
    if multiplier is None:
        return size
    return -(-int(multiplier * size) // multiple) * multiple
