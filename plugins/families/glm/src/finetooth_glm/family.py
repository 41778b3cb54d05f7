"""Facts of GLM models: GLM-4 (`model_type: glm`, `glm4`), GLM-4.5 to 4.7 (`glm4_moe`), 4.7-Flash (`glm4_moe_lite`).

GLM-4.7 has the config of 4.5 and 4.6; its chat template shows that it speaks another markup (`Renderer.marks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.layers import latent_facts, mixed_layers
from finetooth_toolbox.llama_shape import ATTENTION, FUSED_MLP, MLP, layer_of, llama_block, llama_facts

MLP_NAMES = ("gate_up_proj", "down_proj")
AFTER: Mapping[str, Any] = {"attention_after": "post_self_attn_layernorm", "ffn_after": "post_mlp_layernorm"}
"""Norms of a layer of `glm4` that `glm` has not, as a `Block` calls them."""


class GLM:
    """The family `glm`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        GLM-4.5 and 4.6 speak the same markup, GLM-4.7-Flash that of 4.7; that of GLM-4 is left to the model's own chat
        template. GLM-4.7-Flash has latent attention, as DeepSeek's models. Of mixtures of experts adapters reach
        attention: the experts are fused parameters, and peft takes the names of the other linear modules (dense
        layers, shared experts) for those of the experts.
        """
        if config.get("model_type") == "glm4_moe_lite":
            return latent_facts(
                config, renderer="glm4_7", max_positions=202752, query_rank=768, head_dims=(64, 192, 256)
            )
        mixed = config.get("model_type") == "glm4_moe"
        facts = llama_facts(config, renderer="glm4_moe" if mixed else "jinja", max_positions=131072)
        if mixed:
            layers = mixed_layers(layer_of(facts), facts, config)
            return replace(facts, linear_targets=ATTENTION, untargeted=MLP, block=None, per_layer=layers)
        after = AFTER if config.get("model_type") == "glm4" else {}
        block = llama_block(config, interleaved=True, **FUSED_MLP, **after)
        return replace(facts, linear_targets=ATTENTION + MLP_NAMES, block=block)
