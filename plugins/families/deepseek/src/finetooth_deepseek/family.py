"""Facts of DeepSeek models: V2 (`model_type: deepseek_v2`), V3, V3.1 and R1 (`deepseek_v3`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import NoOptions
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import MLP, llama_facts

QUERIES = ("q_a_proj", "q_b_proj")
KEYS_AND_OUTPUT = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj")


def build(options: NoOptions, context: Context) -> DeepSeek:
    return DeepSeek()


class DeepSeek:
    """The family `deepseek`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        V3, V3.1 and R1 have the same config, so which markup a model speaks is left to its own chat template. Adapters
        reach attention: the experts are fused parameters, and peft takes the names of the linear modules beside them
        (dense layers, shared experts) for those of the experts.
        """
        heads = int(config["num_attention_heads"])
        rotated, plain = int(config.get("qk_rope_head_dim") or 64), int(config.get("qk_nope_head_dim") or 128)
        # queries of small models are not compressed; a config that says nothing means the default, which is
        attention = (QUERIES if config.get("q_lora_rank", 1536) else ("q_proj",)) + KEYS_AND_OUTPUT
        facts = llama_facts({**config, "head_dim": rotated + plain}, renderer="jinja", max_positions=4096)
        return replace(
            facts,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            attention_targets=attention,
            linear_targets=attention,
            untargeted=MLP,
            block=None,
        )
