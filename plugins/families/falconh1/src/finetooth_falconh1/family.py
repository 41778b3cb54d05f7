"""Facts of Falcon-H1 models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import Head, LayerFacts, ModelFacts
from finetooth_modelfiles.layers import state_space
from finetooth_toolbox.llama_shape import layer_of, llama_facts

MAMBA = {
    "heads": ("mamba_n_heads", 128), "head_dim": ("mamba_d_head", 64), "groups": ("mamba_n_groups", 1),
    "state": ("mamba_d_state", 256), "chunk": ("mamba_chunk_size", 256),
}  # fmt: skip
"""Where a config does not say."""


class FalconH1:
    """The family `falconh1`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Logits are multiplied by `lm_head_multiplier`. Low-rank additions leave Mamba's `out_proj` alone, which fused
        kernels read past an adapter. No block.
        """
        head = Head("lm_head", scale=float(config.get("lm_head_multiplier") or 1.0))
        facts = replace(llama_facts(config, renderer="jinja", max_positions=8192), head=head, block=None)
        targets = (*facts.linear_targets, "in_proj")
        layers = (_layer(facts, config),) * facts.layers
        return replace(facts, linear_targets=targets, untargeted=("out_proj",), per_layer=layers)


def _layer(facts: ModelFacts, config: Mapping[str, Any]) -> LayerFacts:
    """Attention and Mamba side by side."""
    layer = layer_of(facts)
    sizes = {name: int(config.get(key) or usual) for name, (key, usual) in MAMBA.items()}
    mamba = state_space("mamba", facts.hidden_size, **sizes)
    feed_forward = {path.replace("mlp", "feed_forward"): shape for path, shape in layer.feed_forward.items()}
    mixing = {**layer.mixing, **mamba.mixing}
    return replace(layer, mixing=mixing, feed_forward=feed_forward, state=mamba.state, chunked=mamba.chunked)
