"""Facts of Granite models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.protocols import Experts, Head, LayerFacts, ModelFacts
from finetooth_modelfiles.layers import state_space
from finetooth_toolbox.llama_shape import ATTENTION, layer_of, llama_facts

SHARED = ("in_proj", "input_linear", "output_linear")
"""Linear modules of a Granite 4 layer besides attention: into Mamba, and the shared feed-forward."""

SCALES = ("embedding_multiplier", "residual_multiplier", "attention_multiplier")

MAMBA = {"mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_chunk_size": 256}
EXPAND, SHARED_SIZE, ROUTER = 2, 1024, "block_sparse_moe.router"
"""Where a config does not say."""


class Granite:
    """The family `granite`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        Logits are divided by `logits_scaling`; embeddings, residuals and attention scores have scales of their own.
        Granite 4's layers have Mamba or attention, and experts with a shared feed-forward, which no block says;
        low-rank additions leave `out_proj` alone, which Mamba's fused kernels read past an adapter.
        """
        head = Head("lm_head", scale=1.0 / float(config.get("logits_scaling") or 1.0))
        facts = replace(llama_facts(config, renderer="jinja", max_positions=2048), head=head)
        if config.get("model_type") != "granitemoehybrid":
            embedding, residual, attention = (float(config.get(key) or 1.0) for key in SCALES)
            block = facts.block
            if block is not None:
                block = replace(block, embedding_scale=embedding, residual_scale=residual, attention_scale=attention)
            return replace(facts, block=block)
        layers = _layers(facts, config)
        facts = replace(facts, block=None)
        return replace(facts, linear_targets=(*ATTENTION, *SHARED), untargeted=("out_proj",), per_layer=layers)


def _layers(facts: ModelFacts, config: Mapping[str, Any]) -> tuple[LayerFacts, ...]:
    """Mamba or attention, with a shared feed-forward and experts, if there are any."""
    hidden, shared = facts.hidden_size, int(config.get("shared_intermediate_size") or SHARED_SIZE)
    block = {"input_linear": (hidden, 2 * shared), "output_linear": (shared, hidden)}
    feed_forward = {f"shared_mlp.{name}": shape for name, shape in block.items()}
    count, active = int(config.get("num_local_experts") or 0), int(config.get("num_experts_per_tok") or 0)
    experts = Experts(count, active, facts.ffn_size, shared, ROUTER, balanced=True) if count else None
    attention = replace(layer_of(facts), feed_forward=feed_forward, ffn_size=0 if count else shared, experts=experts)
    heads, groups, state, chunk = (int(config.get(key) or size) for key, size in MAMBA.items())
    head_dim = int(config.get("mamba_expand") or EXPAND) * hidden // heads
    mamba = state_space("mamba", hidden, heads=heads, head_dim=head_dim, groups=groups, state=state, chunk=chunk)
    mamba = replace(mamba, feed_forward=feed_forward, ffn_size=attention.ffn_size, experts=experts)
    kinds = config.get("layer_types") or config.get("layers_block_type") or ["mamba"] * facts.layers
    return tuple(attention if "attention" in kind and "linear" not in kind else mamba for kind in kinds)
