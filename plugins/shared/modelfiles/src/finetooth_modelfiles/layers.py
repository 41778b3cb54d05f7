"""Facts of layers that differ, layer by layer: latent attention, experts with shared ones, state spaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Experts, LayerFacts, ModelFacts
from finetooth_toolbox.llama_shape import MLP, layer_of, linear_shapes, llama_facts

KEY_RANK = 512
"""Rank of latent keys and values, where a config does not say."""

Modules = dict[str, tuple[int, int]]


def latent_facts(
    config: Mapping[str, Any], *, renderer: Pick, max_positions: int, query_rank: int, head_dims: tuple[int, int, int]
) -> ModelFacts:
    """Facts of a mixture of experts with latent attention, from a config in DeepSeek's words.

    Adapters reach attention: the experts are fused parameters, and peft takes the names of the other linear modules
    (dense layers, shared experts) for those of the experts. No block says so.

    Args:
        renderer: the family's.
        max_positions: where the config does not say.
        query_rank: where it does not; zero or None there says that queries are not compressed.
        head_dims: of the rotated part of a head, of the other, and of values, where it does not say.
    """
    rotated, plain, values = (
        int(config.get(key) or size)
        for key, size in zip(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), head_dims, strict=True)
    )
    rank, keys = int(config.get("q_lora_rank", query_rank) or 0), int(config.get("kv_lora_rank") or KEY_RANK)
    facts = llama_facts({**config, "head_dim": rotated + plain}, renderer=renderer, max_positions=max_positions)
    hidden, heads = facts.hidden_size, facts.heads
    queries = heads * facts.head_dim
    compressed = {"q_a_proj": (hidden, rank), "q_b_proj": (rank, queries)}
    mixing: Modules = {
        **(compressed if rank else {"q_proj": (hidden, queries)}),
        "kv_a_proj_with_mqa": (hidden, keys + rotated),
        "kv_b_proj": (keys, heads * (plain + values)),
        "o_proj": (heads * values, hidden),
    }
    layer = layer_of(facts)
    layer = replace(
        layer, mixing={f"self_attn.{name}": shape for name, shape in mixing.items()}, kv_heads=heads, value_dim=values
    )
    attention = tuple(mixing)
    return replace(
        facts, attention_targets=attention, linear_targets=attention, untargeted=MLP, block=None,
        per_layer=mixed_layers(layer, facts, config),
    )  # fmt: skip


def mixed_layers(dense: LayerFacts, facts: ModelFacts, config: Mapping[str, Any]) -> tuple[LayerFacts, ...]:
    """Layers of a mixture of experts, from a config in DeepSeek's words: the first ones dense, or those listed."""
    kinds = config.get("mlp_layer_types")
    first = int(config.get("first_k_dense_replace") or 0)
    count, active, width, shared = (
        int(config.get(key) or usual)
        for key, usual in (
            ("n_routed_experts", 0), ("num_experts_per_tok", 0), ("moe_intermediate_size", 0), ("n_shared_experts", 1),
        )
    )  # fmt: skip
    experts = Experts(count, active, width, shared=width * shared)
    sized = linear_shapes(replace(facts, ffn_size=experts.shared))
    modules = {f"mlp.shared_experts.{name}": sized[name] for name in MLP}
    sparse = replace(dense, feed_forward=modules, ffn_size=0, experts=experts)
    return tuple(
        sparse if count and (kinds[number] == "sparse" if kinds else number >= first) else dense
        for number in range(facts.layers)
    )


def state_space(
    path: str, hidden: int, *, heads: int, head_dim: int, groups: int, state: int, chunk: int
) -> LayerFacts:  # fmt: skip
    """A layer that has a Mamba-2 mixer (arXiv:2405.21060) and nothing else.

    Args:
        path: of the mixer in its layer.
        heads, head_dim: of the mixer.
        groups: of heads that share what goes into the state and comes out of it.
        state: numbers for each channel.
        chunk: positions that are computed at once.
    """
    inner = heads * head_dim
    modules = {
        f"{path}.in_proj": (hidden, 2 * inner + 2 * groups * state + heads),
        f"{path}.out_proj": (inner, hidden),
    }
    return LayerFacts("state_space", modules, {}, state=inner * state, chunked=chunk * heads * (state + head_dim))
