"""Architectures of which a GGUF file holds some parameters otherwise than transformers does: convolutions, state space
models, and attention over a narrower representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetooth_modelfiles.gguf.layouts import (
    COUNTS,
    GRANITE,
    PARTS,
    RENAMED_EXPERTS,
    WIDTH,
    Architecture,
    Change,
    Floats,
    Value,
    experts,
    shared_experts,
)

Config = Mapping[str, Any]
NARROW_LAYERS = (26, 27)
"""Layers of the DeepSeek models of which llama.cpp takes it that queries have no narrower representation."""


def _unsqueezed(parameter: str, tensor: str) -> Change:
    """A convolution of each channel alone: transformers' weight is (channels, 1, width)."""
    return Change(parameter, (tensor,), lambda own, _: (own[:, 0],), lambda parts, _: parts[0][:, None])


def _columned(parameter: str, tensor: str) -> Change:
    """A number for each head, which a file holds as a column."""
    return Change(parameter, (tensor,), lambda own, _: (own[:, None],), lambda parts, _: parts[0][:, 0])


def _decay(parameter: str) -> Change:
    """A state's decay, of which transformers holds the logarithm."""
    return Change(
        parameter, ("ssm_a",), lambda own, _: (-np.exp(own)[:, None],), lambda parts, _: np.log(-parts[0][:, 0])
    )


def _halves(parameter: str, tensors: tuple[str, str], *, read: bool = True) -> Change:
    """Rows of a gate, and behind them those that it gates."""

    def written(own: Floats, config: Config) -> tuple[Floats, ...]:
        half = own.shape[-2] // 2
        return own[..., :half, :], own[..., half:, :]

    def joined(parts: Sequence[Floats], config: Config) -> Floats:
        return np.concatenate(parts, axis=-2)

    return Change(parameter, tensors, written, joined if read else None)


def _mamba(groups: str = "") -> tuple[Change, ...]:
    """Mamba 2's mixer.

    Args:
        groups: the setting with the number of groups of its norm; empty: it has none.
    """
    changes = (
        _unsqueezed("mamba.conv1d.weight", "ssm_conv1d.weight"),
        _decay("mamba.A_log"),
        _columned("mamba.D", "ssm_d"),
    )
    norm = Change(
        "mamba.norm.weight",
        ("ssm_norm.weight",),
        lambda own, config: (own.reshape(int(config[groups]), -1),),
        lambda parts, _: parts[0].reshape(-1),
    )
    return (*changes, norm) if groups else changes


_MAMBA = {
    "ssm_in": "mamba.in_proj",
    "ssm_out": "mamba.out_proj",
    "ssm_conv1d.bias": "mamba.conv1d.bias",
    "ssm_dt.bias": "mamba.dt_bias",
}


def _narrow_keys(own: Floats, config: Config) -> tuple[Floats, ...]:
    """(heads, rank, width) of keys without rotation, turned around, and (heads, width, rank) of values."""
    heads, width = int(config["num_attention_heads"]), int(config["qk_nope_head_dim"])
    rows = own.reshape(heads, -1, own.shape[-1])
    return np.ascontiguousarray(rows[:, :width].swapaxes(1, 2)), np.ascontiguousarray(rows[:, width:])


def _rank(config: Config) -> Any:
    return config["q_lora_rank"] or "a number"


def _narrow_joined(parts: Sequence[Floats], config: Config) -> Floats:
    keys, values = parts
    return np.concatenate([keys.swapaxes(1, 2), values], axis=1).reshape(-1, values.shape[-1])


_SHORT = {
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "shortconv.in_proj.weight": "conv.in_proj.weight",
    "shortconv.out_proj.weight": "conv.out_proj.weight",
}
_SHORT_TOP = {"output_norm": "", "token_embd_norm": "model.embedding_norm"}
_CONVOLUTION = (_unsqueezed("conv.conv.weight", "shortconv.conv.weight"),)


def _short_width(config: Config) -> int:
    """LFM2's feed-forward layers are narrower than its config says, and rounded up."""
    width = int(config["intermediate_size"])
    if not config["block_auto_adjust_ff_dim"]:
        return width
    width = int(config["block_ffn_dim_multiplier"] * int(2 * width / 3))
    multiple = int(config["block_multiple_of"])
    return -(-width // multiple) * multiple


_GRANITE_KEYS = GRANITE | {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    "ssm.time_step_rank": "mamba_n_heads",
}


def _granite_heads(config: Config) -> int:
    return int(config["mamba_expand"]) * int(config["hidden_size"]) // int(config["mamba_n_heads"])


def _granite(**others: Any) -> Architecture:
    """Granite 4's, with or without experts."""
    given: dict[str, Any] = {
        "interleaved": True,
        "label": "granitehybrid",
        "kinds": ("linear_attention", "full_attention"),
        "keys": _GRANITE_KEYS | others.pop("keys", {}),
        "stated": {
            "ssm.inner_size": lambda config: config["mamba_expand"] * config["hidden_size"],
            "rope.scaling.finetuned": False,
        },
        "read": {"mamba_expand": 2, "position_embedding_type": "nope"} | others.pop("read", {}),
        "fixed": {
            "position_embedding_type": "nope",
            "mamba_expand": 2,
            "mamba_d_head": _granite_heads,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "attention_bias": False,
            "time_step_limit": lambda _: [0.0, np.inf],
        },
    }
    modules = _MAMBA | others.pop("modules")
    changes = (*_mamba("mamba_n_groups"), *others.pop("changes"))
    return Architecture(
        "granitemoehybrid", "GraniteMoeHybridForCausalLM", modules=modules, changes=changes, **given, **others
    )


def _times(parameter: str, tensor: str, *factors: str) -> Change:
    """A parameter times settings, each a name, or a name and the place in a list. A file states none of them, so that
    they are 1 in a config that is made of it."""

    def factor(config: Config) -> np.float32:
        made = 1.0
        for name in factors:
            setting, _, place = name.partition(".")
            made *= config[setting][int(place)] if place else config[setting]
        return np.float32(made)

    return Change(parameter, (tensor,), lambda own, config: (own * factor(config),))


def _scaled_inputs(own: Floats, config: Config) -> tuple[Floats, ...]:
    """Falcon-H1's inputs of a mixer, of which each of five parts has a factor."""
    inner, states = int(config["mamba_d_ssm"]), int(config["mamba_n_groups"]) * int(config["mamba_d_state"])
    rows = (inner, inner, states, states, int(config["mamba_n_heads"]))
    scales = np.asarray(config["ssm_multipliers"], np.float32) * np.float32(config["ssm_in_multiplier"])
    return (own * np.repeat(scales, rows)[:, None],)


_FALCON = (
    _times("model.embed_tokens.weight", "token_embd.weight", "embedding_multiplier"),
    _times("lm_head.weight", "output.weight", "lm_head_multiplier"),
    _times("self_attn.k_proj.weight", "attn_k.weight", "key_multiplier", "attention_in_multiplier"),
    _times("self_attn.q_proj.weight", "attn_q.weight", "attention_in_multiplier"),
    _times("self_attn.v_proj.weight", "attn_v.weight", "attention_in_multiplier"),
    _times("self_attn.o_proj.weight", "attn_output.weight", "attention_out_multiplier"),
    _times("feed_forward.gate_proj.weight", "ffn_gate.weight", "mlp_multipliers.0"),
    _times("feed_forward.down_proj.weight", "ffn_down.weight", "mlp_multipliers.1"),
    _times("mamba.out_proj.weight", "ssm_out.weight", "ssm_out_multiplier"),
    Change("mamba.in_proj.weight", ("ssm_in.weight",), _scaled_inputs),
)
_FALCON_FACTORS = (
    "embedding_multiplier", "lm_head_multiplier", "key_multiplier", "attention_in_multiplier",
    "attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier",
)  # fmt: skip

_NARROW: Mapping[str, Value] = {
    "attention_bias": False,
    "q_lora_rank": lambda config: None if config["num_hidden_layers"] in NARROW_LAYERS else _rank(config),
}
_DEEPSEEK = Architecture(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    modules={
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "ffn_gate_inp": "mlp.gate",
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    }
    | experts("mlp")
    | shared_experts("mlp.shared_experts"),
    changes=(
        Change("self_attn.kv_b_proj.weight", ("attn_k_b.weight", "attn_v_b.weight"), _narrow_keys, _narrow_joined),
    ),
    keys={
        "attention.q_lora_rank": "q_lora_rank",
        "attention.kv_lora_rank": "kv_lora_rank",
        "attention.value_length_mla": "v_head_dim",
        "rope.dimension_count": "qk_rope_head_dim",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_count": "n_shared_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_weights_norm": "norm_topk_prob",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        "leading_dense_block_count": "first_k_dense_replace",
        "attention.key_length_mla": "qk_head_dim",
    },
    lacking=("q_lora_rank",),
    stated={
        "attention.head_count_kv": 1,
        "attention.key_length": lambda config: config["kv_lora_rank"] + config["qk_rope_head_dim"],
        "attention.value_length": lambda config: config["kv_lora_rank"],
        "expert_gating_func": 2,  # a sigmoid
    },
    read={
        "num_key_value_heads": lambda config: config["num_attention_heads"],
        "qk_nope_head_dim": lambda config: config["qk_head_dim"] - config["qk_rope_head_dim"],
    },
    fixed={**_NARROW, "rope_interleave": True},
    width="rope.dimension_count",
    splitting="deepseek-v3",
    ahead=True,
    yarn=True,
)


def _mixed_by_group(config: Config) -> tuple[int, list[int]]:
    """How many groups of heads Qwen3-Next's mixed projection has, and where keys, values and gates begin in each."""
    groups, width = int(config["linear_num_key_heads"]), int(config["linear_key_head_dim"])
    values = int(config["linear_num_value_heads"]) // groups * int(config["linear_value_head_dim"])
    return groups, [width, 2 * width, 2 * width + values]


def _unmixed(own: Floats, config: Config) -> tuple[Floats, ...]:
    """Queries of all groups, then keys, then values; and the gates."""
    groups, begins = _mixed_by_group(config)
    *mixed, gates = np.split(own.reshape(groups, -1, own.shape[-1]), begins, axis=1)
    flat = [part.reshape(-1, own.shape[-1]) for part in (*mixed, gates)]
    return np.concatenate(flat[:3]), flat[3]


def _mixed(parts: Sequence[Floats], config: Config) -> Floats:
    groups, (keys, values, _) = _mixed_by_group(config)
    mixed, width = parts[0], parts[0].shape[-1]
    both = np.split(mixed, [groups * keys, groups * values])
    by_group = [part.reshape(groups, -1, width) for part in (*both, parts[1])]
    return np.concatenate(by_group, axis=1).reshape(-1, width)


def _fourth_attends(config: Config) -> list[str]:
    layers = range(1, int(config["num_hidden_layers"]) + 1)
    return ["linear_attention" if layer % 4 else "full_attention" for layer in layers]


CHANGED: Mapping[str, Architecture] = {
    "lfm2": Architecture(
        "lfm2",
        "Lfm2ForCausalLM",
        top=_SHORT_TOP,
        modules=_SHORT,
        changes=_CONVOLUTION,
        kinds=("conv", "full_attention"),
        epsilon=("attention.layer_norm_rms_epsilon", "norm_eps"),
        splitting="lfm2",
        keys={"shortconv.l_cache": "conv_L_cache"},
        stated={"feed_forward_length": _short_width},
        read={"block_auto_adjust_ff_dim": False},
        fixed={"conv_bias": False},
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        top=_SHORT_TOP,
        modules=_SHORT
        | {"ffn_gate_inp": "feed_forward.gate", "exp_probs_b.bias": "feed_forward.expert_bias"}
        | experts("feed_forward"),
        changes=_CONVOLUTION,
        kinds=("conv", "full_attention"),
        epsilon=("attention.layer_norm_rms_epsilon", "norm_eps"),
        splitting="lfm2",
        renamed=RENAMED_EXPERTS,
        keys={"shortconv.l_cache": "conv_L_cache"} | COUNTS | WIDTH | {"leading_dense_block_count": "num_dense_layers"},
        stated={"expert_gating_func": 2},  # a sigmoid
        fixed={"conv_bias": False, "norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0},
    ),
    "deepseek2": _DEEPSEEK,
    "deepseek2 by softmax": replace(
        _DEEPSEEK,
        model_type="deepseek_v2",
        model_class="DeepseekV2ForCausalLM",
        label="deepseek2",
        modules={name: path for name, path in _DEEPSEEK.modules.items() if name != "exp_probs_b.bias"},
        keys={key: of for key, of in _DEEPSEEK.keys.items() if "group" not in key and key != "expert_weights_norm"},
        stated={**_DEEPSEEK.stated, "expert_gating_func": 1},
        read={**_DEEPSEEK.read, "n_group": 1, "topk_group": 1},
        fixed={**_NARROW, "topk_method": "greedy", "mlp_bias": False},
        ahead=False,
    ),
    "granitehybrid": _granite(
        modules={
            "ffn_gate_inp": "block_sparse_moe.router",
            **experts("block_sparse_moe"),
            "ffn_down_shexp": "shared_mlp.output_linear",
        },
        changes=(
            _halves("block_sparse_moe.input_linear.weight", ("ffn_gate_exps.weight", "ffn_up_exps.weight"), read=False),
            _halves("shared_mlp.input_linear.weight", ("ffn_gate_shexp.weight", "ffn_up_shexp.weight")),
        ),
        renamed={
            r"router\.layer": "router",
            r"block_sparse_moe\.output_linear": "block_sparse_moe.experts.down_proj",
        },
        keys={
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_shared_feed_forward_length": "shared_intermediate_size",
        },
    ),
    "granitehybrid without experts": _granite(
        modules={"ffn_gate": "", "ffn_up": "", "ffn_down": "shared_mlp.output_linear"},
        changes=(_halves("shared_mlp.input_linear.weight", ("ffn_gate.weight", "ffn_up.weight")),),
        keys={"feed_forward_length": "shared_intermediate_size"},
        read={"num_local_experts": 0},
    ),
    "falcon-h1": Architecture(
        "falcon_h1",
        "FalconH1ForCausalLM",
        top={"output_norm": "model.final_layernorm"},
        splitting="falcon-h1",
        modules={"ffn_norm": ""} | {f"ffn_{part}": f"feed_forward.{part}_proj" for part in PARTS} | _MAMBA,
        changes=(
            *_mamba(),
            *_FALCON,
            # llama.cpp's name of it has no `.weight`
            Change("pre_ff_layernorm.weight", ("ffn_norm",), lambda own, _: (own,), lambda parts, _: parts[0]),
        ),
        keys={
            "ssm.conv_kernel": "mamba_d_conv",
            "ssm.inner_size": "mamba_d_ssm",
            "ssm.state_size": "mamba_d_state",
            "ssm.group_count": "mamba_n_groups",
            "ssm.time_step_rank": "mamba_n_heads",
        },
        read=dict.fromkeys(_FALCON_FACTORS, 1.0)
        | {"mlp_multipliers": lambda _: [1.0] * 2, "ssm_multipliers": lambda _: [1.0] * 5},
        fixed={
            "mamba_d_head": lambda config: int(config["mamba_d_ssm"]) // int(config["mamba_n_heads"]),
            "mamba_rms_norm": False,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "projectors_bias": False,
            "attention_bias": False,
            "tie_word_embeddings": False,
            "time_step_limit": lambda _: [0.0, np.inf],
        },
    ),
    "apertus": Architecture(
        "apertus",
        "ApertusForCausalLM",
        modules={"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm", "ffn_gate": ""},
        stated_weights={
            f"mlp.act_fn.{name}": (f"xielu.{name}", shape)
            for name, shape in (("alpha_p", (1,)), ("alpha_n", (1,)), ("beta", ()), ("eps", ()))
        },
        fixed={"hidden_act": "xielu", "attention_bias": False},
        long=True,
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        modules={
            "ffn_norm": "",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
            "ssm_ba": "linear_attn.in_proj_ba",
            "ssm_norm": "linear_attn.norm",
            "ssm_out": "linear_attn.out_proj",
            "ssm_dt.bias": "linear_attn.dt_bias",
        }
        | experts("mlp")
        | shared_experts("mlp.shared_expert"),
        changes=(
            Change("linear_attn.in_proj_qkvz.weight", ("attn_qkv.weight", "attn_gate.weight"), _unmixed, _mixed),
            _unsqueezed("linear_attn.conv1d.weight", "ssm_conv1d.weight"),
            Change("linear_attn.A_log", ("ssm_a",), lambda own, _: (-np.exp(own),), lambda parts, _: np.log(-parts[0])),
        ),
        keys=COUNTS
        | WIDTH
        | {
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "ssm.state_size": "linear_key_head_dim",
            "ssm.group_count": "linear_num_key_heads",
            "ssm.time_step_rank": "linear_num_value_heads",
        },
        stated={
            "ssm.inner_size": lambda config: config["linear_value_head_dim"] * config["linear_num_value_heads"],
            "full_attention_interval": 4,
        },
        fixed={
            "linear_value_head_dim": lambda config: config["linear_key_head_dim"],
            "layer_types": _fourth_attends,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": lambda _: [],
            "attention_bias": False,
        },
        one_row=("ffn_gate_inp_shexp.weight",),
        partial=True,
        added=1.0,
    ),
}
