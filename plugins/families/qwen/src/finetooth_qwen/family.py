"""Facts of Qwen models: Qwen2, Qwen2.5 (`model_type: qwen2`) and Qwen3 (`qwen3`), dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import NoOptions, Pick
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Head, ModelFacts

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

RENDERERS: Mapping[str, Pick] = {
    # its default system message differs between Qwen2 and 2.5, so chatml reads it from the model's template
    "qwen2": "chatml",
    # opens the last answer of a conversation with a think block, except in the variants that do not think, and drops
    # earlier reasoning: only a model's own template tells
    "qwen3": "jinja",
}


def build(options: NoOptions, context: Context) -> Qwen:
    return Qwen()


class Qwen:
    """The family `qwen`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config."""
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return ModelFacts(
            hidden_size=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            ffn_size=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            max_positions=int(config.get("max_position_embeddings") or 32768),
            layer_path="model.layers",
            body="model",
            head=Head("lm_head"),
            attention_targets=ATTENTION,
            linear_targets=ATTENTION + MLP,
            renderer=RENDERERS[str(config.get("model_type", "qwen2"))],
            tied=bool(config.get("tie_word_embeddings", False)),
        )
