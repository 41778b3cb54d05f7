"""Facts of Phi models: Phi-1, 1.5 and 2 (`model_type: phi`), Phi-3, 3.5 and 4 (`phi3`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Pick
from finetooth_hooks.protocols import Block, LayerFacts, ModelFacts
from finetooth_toolbox.llama_shape import FUSED_MLP, layer_of, linear_shapes, llama_block, llama_facts

PHI3_VOCABULARY, PHI4_VOCABULARY = 32064, 100352

PHI_ATTENTION = ("q_proj", "k_proj", "v_proj", "dense")
PHI_MLP = ("fc1", "fc2")
PHI3_ATTENTION = ("o_proj", "qkv_proj")
PHI3_MLP = ("gate_up_proj", "down_proj")

PHI_BLOCK: Mapping[str, Any] = {
    "output": "self_attn.dense", "gate": "", "up": "mlp.fc1", "down": "mlp.fc2", "norms": "own", "parallel": True,
    "ffn_norm": "input_layernorm", "final_norm": "final_layernorm",
}  # fmt: skip
PHI_HEAD_NORMS: Mapping[str, Any] = {"query_norm": "self_attn.q_layernorm", "key_norm": "self_attn.k_layernorm"}
PHI3_BLOCK: Mapping[str, Any] = {"query": "self_attn.qkv_proj", "key": "", "value": "", **FUSED_MLP}


class Phi:
    """The family `phi`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Phi-2 computes attention and feed-forward in parallel, Phi-3 in fused modules. Neither has a block where it
        drops at random, or where its angles change with the length.
        """
        facts = llama_facts(config, renderer=_renderer(config), max_positions=2048)
        old = config.get("model_type") == "phi"
        attention, mlp = (PHI_ATTENTION, PHI_MLP) if old else (PHI3_ATTENTION, PHI3_MLP)
        facts = replace(facts, attention_targets=attention, linear_targets=attention + mlp, block=_block(config))
        window = 0 if old else int(config.get("sliding_window") or 0)
        return replace(facts, per_layer=(_layer(facts, window),) * facts.layers) if window else facts


def _block(config: Mapping[str, Any]) -> Block | None:
    if config.get("resid_pdrop") or config.get("embd_pdrop"):
        return None
    if config.get("model_type") != "phi":
        return llama_block(config, windows=True, **PHI3_BLOCK)
    return llama_block(config, **PHI_BLOCK, **(PHI_HEAD_NORMS if config.get("qk_layernorm") else {}))


def _layer(facts: ModelFacts, window: int) -> LayerFacts:
    """A layer of Phi-3 that attends to a window."""
    shapes = linear_shapes(facts)
    return replace(
        layer_of(facts, window=window),
        mixing={f"self_attn.{name}": shapes[name] for name in PHI3_ATTENTION},
        feed_forward={f"mlp.{name}": shapes[name] for name in PHI3_MLP},
    )


def _renderer(config: Mapping[str, Any]) -> Pick:
    """32,064 ids are Phi-3's and 3.5's, which differ only in what they make of an empty system message; 100,352 are
    Phi-4's. Phi-4-mini and the models before Phi-3 speak as their own chat template says."""
    if config.get("model_type") == "phi":
        return "jinja"
    return {PHI3_VOCABULARY: "phi3", PHI4_VOCABULARY: "phi4"}.get(config["vocab_size"], "jinja")
