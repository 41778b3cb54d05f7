"""Facts of Mistral models: `model_type` mistral, mixtral, ministral and ministral3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Pick
from finetooth_hooks.protocols import Experts, ModelFacts
from finetooth_toolbox.llama_shape import ATTENTION, llama_block, llama_facts, windowed_layers

EXPERTS = (("num_local_experts", 8), ("num_experts_per_tok", 2))
"""How many there are and how many compute a token, where a config does not say."""
V3_VOCABULARY, TEKKEN_VOCABULARY = 32768, 131072
LARGE_HIDDEN, NEMO_HIDDEN, MINISTRAL_HIDDEN = 12288, 5120, 4096
NEMO_ROTATION, SMALL_ROTATION = 1e6, 1e8
"""What the rotary angles are based on, which tells Nemo from Small 2501: both are 5,120 wide."""


class Mistral:
    """The family `mistral`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config. Mixtral and Ministral 3 have no `Block`: Mixtral has
        experts, and Ministral 3 multiplies its queries by a factor that grows with their position."""
        facts = llama_facts(config, renderer=_renderer(config), max_positions=32768)
        kind = config.get("model_type", "mistral")
        if kind == "mixtral":  # its experts are not linear modules, so an adapter trains attention
            count, active = (int(config.get(key) or usual) for key, usual in EXPERTS)
            layers = windowed_layers(facts, config, Experts(count, active, facts.ffn_size, balanced=True))
            return replace(facts, linear_targets=ATTENTION, block=None, per_layer=layers)
        if config.get("sliding_window"):
            facts = replace(facts, per_layer=windowed_layers(facts, config))
        return replace(facts, block=None if kind == "ministral3" else llama_block(config, windows=True))


def _renderer(config: Mapping[str, Any]) -> Pick:
    """The markup, as far as a config tells.

    32,768 ids are v3's, but for the models of Large's size, of which later ones speak v7. 131,072 ids are those of
    Nemo and Ministral 8B (v3-tekken) and of Small 2501 (v7-tekken), told by their widths and rotary bases. The 32,000
    of v1 are shared with models that speak otherwise; all others speak as their own chat template says.
    """
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    if config.get("model_type", "mistral") not in ("mistral", "mixtral"):
        return "jinja"
    if vocabulary == V3_VOCABULARY and hidden != LARGE_HIDDEN:
        return {"name": "mistral", "version": "v3"}
    if vocabulary != TEKKEN_VOCABULARY:
        return "jinja"
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = config.get("rope_theta") or rotary.get("rope_theta")
    versions = {
        (NEMO_HIDDEN, NEMO_ROTATION): "v3-tekken",
        (MINISTRAL_HIDDEN, SMALL_ROTATION): "v3-tekken",
        (NEMO_HIDDEN, SMALL_ROTATION): "v7-tekken",
    }
    version = versions.get((hidden, float(base or 0)))
    return "jinja" if version is None else {"name": "mistral", "version": version}
