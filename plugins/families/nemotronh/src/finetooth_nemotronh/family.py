"""Facts of Nemotron-H models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks import Pick
from finetooth_hooks.protocols import Experts, LayerFacts, ModelFacts
from finetooth_modelfiles.layers import state_space
from finetooth_toolbox.llama_shape import ATTENTION, layer_of, llama_facts

MIXERS = ("in_proj", "up_proj", "down_proj")
"""Linear modules besides attention: into Mamba, and those of feed-forward and shared experts."""

KINDS = {
    **{"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"},
    **{"linear_attention": "mamba", "full_attention": "attention"},
}
"""What configs call the kinds of layers, and what is said here."""
MAMBA = {
    "heads": ("mamba_num_heads", 128), "head_dim": ("mamba_head_dim", 64), "groups": ("n_groups", 8),
    "state": ("ssm_state_size", 128), "chunk": ("chunk_size", 128),
}  # fmt: skip
"""Where a config does not say."""
EXPERTS = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size")


class NemotronH:
    """The family `nemotronh`."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        """Sizes and module names of a model, from its config.

        A layer is Mamba, attention, feed-forward or experts, and each is called `mixer`. Low-rank additions leave
        Mamba's `out_proj` alone, which fused kernels read past an adapter. No block, and no fused low-rank kernels.
        """
        kinds = _kinds(config)
        layers = len(kinds) or config.get("num_hidden_layers")
        sized = {**config, "num_hidden_layers": layers, "head_dim": config.get("head_dim") or 128}
        # Nemotron 3 has layers of experts, those before it have none
        renderer: Pick = "nemotron3" if "moe" in kinds else "jinja"
        facts = replace(llama_facts(sized, renderer=renderer, max_positions=4096), block=None)
        facts = replace(facts, linear_targets=(*ATTENTION, *MIXERS), untargeted=("out_proj",))
        if config.get("moe_latent_size"):  # its experts read and write another size
            return facts
        described = {kind: _layer(kind, facts, config) for kind in set(kinds)}
        return replace(facts, per_layer=tuple(described[kind] for kind in kinds))


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """What each layer is, in one language; empty where the config does not say."""
    pattern = (
        config.get("layers_block_type") or config.get("layer_types") or config.get("hybrid_override_pattern") or ()
    )
    return [KINDS.get(kind, kind) for kind in pattern]


def _layer(kind: str, facts: ModelFacts, config: Mapping[str, Any]) -> LayerFacts:
    hidden = facts.hidden_size
    if kind == "mamba":
        sizes = {name: int(config.get(key) or usual) for name, (key, usual) in MAMBA.items()}
        return state_space("mixer", hidden, **sizes)
    if kind == "attention":
        layer = layer_of(facts)
        mixing = {path.replace("self_attn", "mixer"): shape for path, shape in layer.mixing.items()}
        return replace(layer, mixing=mixing, feed_forward={}, ffn_size=0)
    if kind == "mlp":
        return LayerFacts("none", {}, _block("mixer", hidden, facts.ffn_size), ffn_size=facts.ffn_size)
    count, active, width, shared = (int(config[key]) for key in EXPERTS)
    experts = Experts(count, active, width, shared, "mixer.gate", gated=False)
    return LayerFacts("none", {}, _block("mixer.shared_experts", hidden, shared), experts=experts)


def _block(path: str, hidden: int, width: int) -> dict[str, tuple[int, int]]:
    return {f"{path}.up_proj": (hidden, width), f"{path}.down_proj": (width, hidden)}
