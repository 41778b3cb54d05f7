"""Facts of Llama models: Llama 2 and 3, SmolLM and SmolLM2, and others of `model_type: llama`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks import NoOptions, Pick
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Head, ModelFacts

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SMOLLM_VOCABULARY, LLAMA3_VOCABULARY = 49152, 128256


def build(options: NoOptions, context: Context) -> Llama:
    return Llama()


class Llama:
    """The family `llama`."""

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
            max_positions=int(config.get("max_position_embeddings") or 2048),
            layer_path="model.layers",
            body="model",
            head=Head("lm_head"),
            attention_targets=ATTENTION,
            linear_targets=ATTENTION + MLP,
            renderer=_renderer(config),
            tied=bool(config.get("tie_word_embeddings", False)),
        )


def _renderer(config: Mapping[str, Any]) -> Pick:
    """The markup, as far as a config tells: vocabularies are shared only by models that speak alike.

    49,152 ids that end a message with id 2, `<|im_end|>`, are SmolLM's (code models share the size and end with id 0);
    128,256 ids are Llama 3's, which from 3.1 on, told by its rope scaling, opens with two dates. All others
    speak as their own chat template says.
    """
    vocabulary = config["vocab_size"]
    if vocabulary == SMOLLM_VOCABULARY and config.get("eos_token_id") in (2, None):
        return "chatml"
    if vocabulary == LLAMA3_VOCABULARY:
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        dated = scaling.get("rope_type", scaling.get("type")) == "llama3"
        return {"name": "llama3", "dated": dated}
    return "jinja"
