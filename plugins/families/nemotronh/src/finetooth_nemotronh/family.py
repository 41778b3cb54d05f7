"""Facts of Nemotron-H models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import NoOptions, Pick
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import ATTENTION, llama_facts

MIXERS = ("in_proj", "up_proj", "down_proj")
"""Linear modules besides attention: into Mamba, and those of feed-forward and shared experts."""


def build(options: NoOptions, context: Context) -> NemotronH:
    return NemotronH()


class NemotronH:
    """The family `nemotronh`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        A layer is Mamba, attention, feed-forward or experts, and each is called `mixer`. Low-rank additions leave
        Mamba's `out_proj` alone, which fused kernels read past an adapter. No block, and no fused low-rank kernels.
        """
        layers = config.get("num_hidden_layers") or len(config.get("layers_block_type") or ())
        sized = {**config, "num_hidden_layers": layers, "head_dim": config.get("head_dim") or 128}
        facts = replace(llama_facts(sized, renderer=_renderer(config), max_positions=4096), block=None)
        return replace(facts, linear_targets=(*ATTENTION, *MIXERS), untargeted=("out_proj",))


def _renderer(config: Mapping[str, Any]) -> Pick:
    """The markup, as far as a config tells: Nemotron 3 has layers of experts, those before it have none."""
    layers = config.get("layers_block_type") or config.get("layer_types") or ()
    return "nemotron3" if "moe" in layers or "E" in (config.get("hybrid_override_pattern") or "") else "jinja"
