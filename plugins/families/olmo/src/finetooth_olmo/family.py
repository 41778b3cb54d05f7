"""Facts of OLMo models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import HEAD_NORMS, llama_block, llama_facts, windowed_layers

NORMS: Mapping[str, Any] = {
    "attention_norm": "",
    "ffn_norm": "",
    "attention_after": "post_attention_layernorm",
    "ffn_after": "post_feedforward_layernorm",
    **HEAD_NORMS,
}
"""Of a `Block`: norms stand behind attention and feed-forward alone."""


class OLMo:
    """The family `olmo`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Norms stand after attention and feed-forward, and queries and keys are normalised over all heads. Layers of
        OLMo 3 attend in turns to a window and to everything, turned by different angles.
        """
        facts = llama_facts(config, renderer="jinja", max_positions=4096)
        if config.get("model_type") != "olmo3":
            return replace(facts, block=llama_block(config, **NORMS))
        kinds = tuple(config.get("layer_types") or ())
        block = llama_block(config, windows=True, rotations=kinds, **NORMS) if kinds else None
        return replace(facts, block=block, per_layer=windowed_layers(facts, config) if kinds else ())
