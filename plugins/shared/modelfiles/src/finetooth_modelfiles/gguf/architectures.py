"""The architectures a GGUF file may hold: the config each becomes, and how each of its tensors is called and laid out.

The metadata keys and tensor names are llama.cpp's (gguf-py `constants.py`, `tensor_mapping.py`); the config keys and
parameter names are those of transformers. An architecture is here only when a test round-trips it against the
transformers model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import RecipeError, UserError

from finetooth_modelfiles.gguf.changed_layouts import CHANGED
from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.layouts import (
    COUNTS,
    GRANITE,
    RENAMED_EXPERTS,
    WIDTH,
    Architecture,
    Change,
    Gemma,
    experts,
    shared_experts,
)

_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GLM = {
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_BIAS = {"attention_bias": "attn_q.bias"}
_AFTER = {"ffn_norm": "", "post_attention_norm": "post_attention_layernorm"}
_EXPERTS = {"ffn_gate_inp": "mlp.gate"} | experts("mlp")
_SHARED = shared_experts("mlp.shared_experts")
_HUNYUAN = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}


def _every_fourth(usual: Any, fourth: Any) -> Callable[[Mapping[str, Any]], list[Any]]:
    """A setting of each layer, where one in four differs."""
    return lambda config: [fourth if (n + 1) % 4 == 0 else usual for n in range(int(config["num_hidden_layers"]))]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # a mistral model whose window holds its context computes what a llama model does, and a file does not tell them
        "llama": Architecture(
            "llama", "LlamaForCausalLM", interleaved=True, optional=_BIAS, written=("mistral",), long=True
        ),
        "mixtral": Architecture(
            "mixtral",
            "MixtralForCausalLM",
            label="llama",
            interleaved=True,
            modules=_EXPERTS,
            renamed=RENAMED_EXPERTS | {"block_sparse_moe": "mlp"},
            keys={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        ),
        "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
        "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", optional=_BIAS),
        "qwen3moe": Architecture(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            modules=_EXPERTS,
            keys=COUNTS | WIDTH,
            fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": lambda _: []},
        ),
        "gemma": Architecture(
            "gemma", "GemmaForCausalLM", added=1.0, fixed={"tie_word_embeddings": True, "attention_bias": False}
        ),
        "gemma2": Architecture(
            "gemma2", "Gemma2ForCausalLM", modules=_GEMMA, gemma=Gemma(2, 46, 4096, 50.0, 30.0), added=1.0
        ),
        "gemma3": Architecture(
            "gemma3_text", "Gemma3ForCausalLM", modules=_GEMMA, gemma=Gemma(6, 62, local_base=10000.0), added=1.0
        ),
        "glm4": Architecture("glm4", "Glm4ForCausalLM", modules=_GLM, optional=_BIAS, partial=True, splitting="glm4"),
        "glm4moe": Architecture(
            "glm4_moe",
            "Glm4MoeForCausalLM",
            modules=_AFTER | _EXPERTS | _SHARED | {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"},
            optional=_BIAS | {"use_qk_norm": "attn_q_norm.weight"},
            keys=WIDTH
            | {
                "expert_count": "n_routed_experts",
                "expert_used_count": "num_experts_per_tok",
                "expert_shared_count": "n_shared_experts",
                "expert_weights_scale": "routed_scaling_factor",
                "expert_weights_norm": "norm_topk_prob",
                "leading_dense_block_count": "first_k_dense_replace",
            },
            stated={"expert_gating_func": 2},  # a sigmoid
            fixed={"n_group": 1, "topk_group": 1},
            partial=True,
            ahead=True,
            splitting="glm4",
        ),
        "phi3": Architecture("phi3", "Phi3ForCausalLM", modules=_FUSED, capped=True),
        "arcee": Architecture(
            "arcee",
            "ArceeForCausalLM",
            interleaved=True,
            optional=_BIAS,
            modules={"ffn_gate": ""},
            fixed={"hidden_act": "relu2"},
            long=True,
        ),
        "seed_oss": Architecture(
            "seed_oss",
            "SeedOssForCausalLM",
            modules=_AFTER,
            optional=_BIAS,
            fixed={"attention_out_bias": False},
        ),
        "smollm3": Architecture(
            "smollm3",
            "SmolLM3ForCausalLM",
            interleaved=True,
            fixed={"no_rope_layers": _every_fourth(1, 0), "attention_bias": False},
        ),
        "granite": Architecture(
            "granite",
            "GraniteForCausalLM",
            interleaved=True,
            optional=_BIAS,
            keys=GRANITE,
        ),
        "olmo2": Architecture(
            "olmo2",
            "Olmo2ForCausalLM",
            modules=_AFTER | {"attn_norm": "", "post_ffw_norm": "post_feedforward_layernorm"},
            fixed={"attention_bias": False},
        ),
        "olmoe": Architecture(
            "olmoe",
            "OlmoeForCausalLM",
            modules=_EXPERTS,
            keys=COUNTS,
            fixed={
                "norm_topk_prob": False,
                "clip_qkv": None,
                "attention_bias": False,
                "num_key_value_heads": lambda config: config["num_attention_heads"],
            },
        ),
        "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM", fixed={"use_bias": False}),
        "ernie4_5-moe": Architecture(
            "ernie4_5_moe",
            "Ernie4_5_MoeForCausalLM",
            modules=_EXPERTS | _SHARED | {"exp_probs_b.bias": "mlp.gate.moe_statics.e_score_correction_bias"},
            renamed={r"mlp\.moe_statics": "mlp.gate.moe_statics"},
            keys=WIDTH
            | {
                "expert_count": "moe_num_experts",
                "expert_used_count": "moe_k",
                "expert_shared_count": "moe_num_shared_experts",
                "interleave_moe_layer_step": "moe_layer_interval",
                "leading_dense_block_count": "moe_layer_start_index",
            },
            stated={
                "expert_shared_feed_forward_length": lambda config: (
                    config["moe_intermediate_size"] * config["moe_num_shared_experts"]
                )
            },
            fixed={"use_bias": False, "moe_layer_end_index": lambda config: config["num_hidden_layers"] - 1},
            one_row=("exp_probs_b.bias",),
        ),
        "hunyuan-dense": Architecture(
            "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", modules=_HUNYUAN, fixed={"attention_bias": False}
        ),
        "hunyuan-moe": Architecture(
            "hunyuan_v1_moe",
            "HunYuanMoEV1ForCausalLM",
            modules=_HUNYUAN | _EXPERTS | shared_experts("mlp.shared_mlp") | {"ffn_gate_inp": "mlp.gate.wg"},
            keys={
                "expert_count": "num_experts",
                "expert_used_count": "moe_topk",
                "expert_feed_forward_length": "intermediate_size",
                "expert_shared_feed_forward_length": "intermediate_size",
            },
            stated={"expert_shared_count": 1},
            fixed={"attention_bias": False},
        ),
        "command-r": Architecture(
            "cohere",
            "CohereForCausalLM",
            epsilon=("attention.layer_norm_epsilon", "layer_norm_eps"),
            modules={"ffn_norm": ""},
            keys={"logit_scale": "logit_scale"},
            fixed={"use_qk_norm": False, "attention_bias": False, "tie_word_embeddings": True},
        ),
        "cohere2": Architecture(
            "cohere2",
            "Cohere2ForCausalLM",
            epsilon=("attention.layer_norm_epsilon", "layer_norm_eps"),
            modules={"ffn_norm": ""},
            keys={"logit_scale": "logit_scale", "attention.sliding_window": "sliding_window"},
            fixed={
                "layer_types": _every_fourth("sliding_attention", "full_attention"),
                "attention_bias": False,
                "tie_word_embeddings": True,
            },
        ),
        **CHANGED,
    }
)
BY_TYPE: Mapping[str, tuple[str, Architecture]] = {
    kind: (one.label or key, one) for key, one in ARCHITECTURES.items() for kind in (one.model_type, *one.written)
}
"""What models are called in a file and how they are laid out there, by the type of their config."""
FREQUENCIES = "rope_freqs.weight"
"""The tensor that Llama 3.1's rotary angles become: what each frequency is divided by."""
_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<module>[\w.]+)\.(?P<kind>weight|bias)")


def architecture_of(container: Container) -> Architecture:
    """The architecture of a file.

    Raises:
        RecipeError: it is none of `ARCHITECTURES`, or a variant of one that is not understood.
    """
    label = container.architecture
    known = [one for key, one in ARCHITECTURES.items() if (one.label or key) == label]
    if not known:
        labels = dict.fromkeys(one.label or key for key, one in ARCHITECTURES.items())
        raise RecipeError(
            "model",
            f"{container.path} holds a model of architecture {label!r}, which is not supported",
            action=f"supported are {', '.join(labels)}; load others from their original folder or hub id",
        )
    mixture = bool(container.metadata.get(f"{label}.expert_count", 0))
    fitting = [architecture for architecture in known if architecture.mixture == mixture]
    if not fitting:
        what = "a mixture of experts" if mixture else f"a {label} model without experts"
        raise RecipeError("model", f"{container.path} holds {what}", action="load it from its original folder")
    chosen = container.metadata.get(f"{label}.expert_gating_func", 1)
    return next((one for one in fitting if one.stated.get("expert_gating_func") == chosen), fitting[0])


def parameter_names(container: Container) -> dict[str, tuple[str, ...]]:
    """Names of a file's tensors by those of transformers' parameters: several where a parameter is held otherwise,
    KEY:LAYER where it is stated; a stack of experts has an expert's name, without its number. Layers that only predict
    further ahead are left out.

    Raises:
        RecipeError: see `parameter_name`; or a part of a parameter is missing, or what the file should state.
    """
    layers = int(container.metadata.get(f"{container.architecture}.block_count", 0)) - layers_ahead(container)
    kept = (name for name in container.tensors if not name.startswith("blk.") or int(name.split(".")[1]) < layers)
    names: dict[str, tuple[str, ...]] = {}
    for name in kept:
        if name != FREQUENCIES:
            change = architecture_of(container).change_of(name)
            block = ".".join(name.split(".")[:2])
            parts = tuple(f"{block}.{part}" for part in change.tensors) if change else (name,)
            if lost := [part for part in parts if part not in container.tensors]:
                raise RecipeError("model", f"{container.path} lacks {lost[0]}", action="fetch or convert it again")
            names[parameter_name(container, name)] = parts
    for parameter, (key, _) in architecture_of(container).stated_weights.items():
        if len(container.metadata.get(key, ())) < layers:
            raise RecipeError("model", f"{container.path} does not state {key}", action="fetch or convert it again")
        names |= {f"model.layers.{layer}.{parameter}": (f"{key}:{layer}",) for layer in range(layers)}
    return names


def layers_ahead(container: Container) -> int:
    """How many of a file's last layers only predict further ahead."""
    return int(container.metadata.get(f"{container.architecture}.nextn_predict_layers", 0))


def parameter_name(container: Container, tensor: str) -> str:
    """The transformers name of a tensor of the file: `blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`.

    Raises:
        RecipeError: the tensor has no counterpart; leaving it out would change the model without a word.
    """
    match, architecture = _NAME.fullmatch(tensor), architecture_of(container)
    if change := architecture.change_of(tensor):
        return f"model.layers.{tensor.split('.')[1]}.{change.parameter}"
    if match is not None:
        block, module, kind = match["block"], match["module"], match["kind"]
        if block is None and module in architecture.outside:
            return f"{architecture.outside[module]}.{kind}"
        modules = architecture.block
        if block is not None and (whole := modules.get(f"{module}.{kind}")):
            return f"model.layers.{block}.{whole}"
        if block is not None and module in modules:
            return f"model.layers.{block}.{modules[module]}.{kind}"
    raise RecipeError(
        "model",
        f"{container.path} holds a tensor {tensor}, which a {container.architecture} model does not have here",
        action="load this model from its original folder or hub id",
    )


def tensor_name(parameter: str, architecture: Architecture) -> str:
    """The name in a GGUF file of a transformers parameter: the other way round than `parameter_name`.

    Raises:
        UserError: it has none.
    """
    whole = re.sub(r"\.experts\.\d+\.", ".experts.", renamed(parameter, architecture))
    module, _, kind = whole.rpartition(".")
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    table, inner = (architecture.outside, module) if block is None else (architecture.block, block[2])
    stems = {name: short if "." in short else f"{short}.{kind}" for short, name in table.items()}
    stem = stems.get(f"{inner}.{kind}") or (stems.get(inner) if kind in ("weight", "bias") else None)
    if stem is None:
        raise UserError(f"{parameter} has no name in a GGUF file", action="export it with --to safetensors")
    return stem if block is None else f"blk.{block[1]}.{stem}"


def renamed(parameter: str, architecture: Architecture) -> str:
    """The name in transformers' model of a parameter of a folder."""
    for written, meant in architecture.renamed.items():
        parameter = re.sub(written, meant, parameter)
    return parameter


def written_change(parameter: str, architecture: Architecture) -> tuple[Change, str] | None:
    """How a parameter of a folder is written, and the beginning of its tensors' names; None: as it stands."""
    name = renamed(parameter, architecture)
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    inner, prefix = (block[2], f"blk.{block[1]}.") if block else (name, "")
    return next(((change, prefix) for change in architecture.changes if change.parameter == inner), None)


def expert_of(parameter: str) -> int:
    """The number of the expert that a parameter of a folder is of; 0 of others."""
    match = re.search(r"\.experts\.(\d+)\.", parameter)
    return int(match[1]) if match else 0


def restored_rows(
    container: Container, tensor: str, blocks: npt.NDArray[np.uint8], values: Mapping[str, Any]
) -> npt.NDArray[np.uint8]:
    """The stored rows of a tensor in the order transformers wants; only llama's query and key projections change.

    A converter writes row (head, half, pair) of the projection at (head, pair, half), so that the two coordinates that
    a rotation mixes lie side by side. Quantised blocks never span rows, so the stored bytes can be moved as they are.
    """
    module = tensor.split(".")[-2]
    if not architecture_of(container).interleaved or module not in ("attn_q", "attn_k"):
        return blocks
    heads = values["num_attention_heads"] if module == "attn_q" else values["num_key_value_heads"]
    if tensor.endswith(".bias"):
        blocks = blocks.reshape(heads * values["head_dim"], -1)  # one value a row
    pairs = blocks.reshape(heads, values["head_dim"] // 2, 2, blocks.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(blocks.shape)


def stored_offset(architecture: Architecture, tensor: str) -> float:
    """What a file adds to the numbers of a tensor."""
    plain = tensor.endswith("ssm_norm.weight") or not tensor.endswith("norm.weight")
    return 0.0 if plain else architecture.added
