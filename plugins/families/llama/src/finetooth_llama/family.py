"""Facts of Llama models: Llama 2 and 3, SmolLM and SmolLM2, and others of `model_type: llama`; and SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Pick
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import llama_block, llama_facts

SMOLLM_VOCABULARY, LLAMA3_VOCABULARY = 49152, 128256


class Llama:
    """The family `llama`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config."""
        if config.get("model_type") == "smollm3":
            # every fourth layer turns nothing by its position
            turned = tuple("" if rotated else None for rotated in config.get("no_rope_layers") or ())
            block = llama_block(config, rotations=turned) if turned else None
            return replace(llama_facts(config, renderer="smollm3", max_positions=32768), block=block)
        return llama_facts(config, renderer=_renderer(config), max_positions=2048)


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
