"""Facts of gpt-oss models (`model_type: gpt_oss`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import AttentionNeeds, Experts, ModelFacts
from finetooth_toolbox.llama_shape import ATTENTION, llama_block, llama_facts, windowed_layers

HEAD_DIM, EXPERTS, ACTIVE, WINDOW = 64, 128, 4, 128
"""Where a config does not say."""


class GPTOSS:
    """The family `gptoss`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Low-rank additions reach attention only: the experts are not linear modules. Attention has sinks, and every
        other layer a window.
        """
        sized = {**config, "head_dim": config.get("head_dim") or HEAD_DIM}
        facts = llama_facts(sized, renderer="harmony", max_positions=131072)
        experts = Experts(
            int(config.get("num_local_experts") or EXPERTS),
            int(config.get("num_experts_per_tok") or config.get("experts_per_token") or ACTIVE),
            width=facts.ffn_size,
            router="mlp.router",
            balanced=True,
            clamped=True,
        )
        kinds = config.get("layer_types") or ["sliding_attention", "full_attention"] * (facts.layers // 2)
        window = {"layer_types": kinds, "sliding_window": config.get("sliding_window") or WINDOW}
        layers = windowed_layers(facts, window, experts)
        facts = replace(facts, per_layer=tuple(replace(layer, norms=2, wide_norms=True) for layer in layers))
        block = llama_block(config, windows=True, feed_forward="mlp")
        return replace(facts, linear_targets=ATTENTION, attention=AttentionNeeds(sinks=True), block=block)
