"""Facts of Phi models: Phi-1, 1.5 and 2 (`model_type: phi`), Phi-3, 3.5 and 4 (`phi3`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import NoOptions, Pick
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import llama_facts

PHI3_VOCABULARY, PHI4_VOCABULARY = 32064, 100352

PHI_ATTENTION = ("q_proj", "k_proj", "v_proj", "dense")
PHI_MLP = ("fc1", "fc2")
PHI3_ATTENTION = ("qkv_proj", "o_proj")
PHI3_MLP = ("gate_up_proj", "down_proj")


def build(options: NoOptions, context: Context) -> Phi:
    return Phi()


class Phi:
    """The family `phi`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        No block: Phi-2 computes attention and feed-forward in parallel, Phi-3 in fused modules.
        """
        facts = llama_facts(config, renderer=_renderer(config), max_positions=2048)
        old = config.get("model_type") == "phi"
        attention, mlp = (PHI_ATTENTION, PHI_MLP) if old else (PHI3_ATTENTION, PHI3_MLP)
        return replace(facts, attention_targets=attention, linear_targets=attention + mlp, block=None)


def _renderer(config: Mapping[str, Any]) -> Pick:
    """32,064 ids are Phi-3's and 3.5's, which differ only in what they make of an empty system message; 100,352 are
    Phi-4's. Phi-4-mini and the models before Phi-3 speak as their own chat template says."""
    if config.get("model_type") == "phi":
        return "jinja"
    return {PHI3_VOCABULARY: "phi3", PHI4_VOCABULARY: "phi4"}.get(config["vocab_size"], "jinja")
