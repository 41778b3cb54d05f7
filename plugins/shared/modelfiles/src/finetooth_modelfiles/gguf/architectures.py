"""The architectures a GGUF file may hold: the config each becomes, and how each of its tensors is called and laid out.

The metadata keys and tensor names are llama.cpp's (gguf-py `constants.py`, `tensor_mapping.py`); the config keys and
parameter names are those of transformers. An architecture is here only when a test round-trips it against the
transformers model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import RecipeError, UserError

from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.special_tokens import special_tokens


@dataclass(frozen=True)
class Gemma:
    """What Gemma's models have beyond Llama's, as llama.cpp computes them: their norms are stored with 1 added.

    Attributes:
        period: of so many layers the last attends to everything, the others to a window.
        widest: layers of the model whose attention is scaled by hidden size over heads instead of the head's width.
        window: where the file does not state one; 0: no layer has one.
        attention_cap, final_cap: soft caps where the file does not state them; None: there is none.
        local_base: of the rotary angles in layers with a window, where the file does not state it; 0: the same in all.
    """

    period: int
    widest: int
    window: int = 0
    attention_cap: float | None = None
    final_cap: float | None = None
    local_base: float = 0.0

    def layer_types(self, layers: int) -> list[str]:
        """Of each layer, as transformers calls it."""
        return ["sliding_attention" if (n + 1) % self.period else "full_attention" for n in range(layers)]

    def query_scalar(self, layers: int, hidden: int, heads: int, head_width: int) -> int:
        """Queries are divided by its root."""
        return hidden // heads if layers == self.widest else head_width


@dataclass(frozen=True)
class Architecture:
    """How one `general.architecture` maps onto a transformers model.

    Attributes:
        model_type: of the transformers config.
        model_class: the transformers class.
        interleaved: the converter reordered the rows of the query and key projections for interleaved rotary pairs
            (llama.cpp's `permute`); they must be put back for rotation by halves.
        optional_biases: the transformers model has attention biases only if its config says so (`attention_bias`).
        modules: llama.cpp's names of a block's modules that are not those of `_BLOCK`, with those of transformers.
        written: other types of configs that are written as this one.
        capped: the file states a context no longer than the model's sliding window: llama.cpp has no window here.
    """

    model_type: str
    model_class: str
    interleaved: bool = False
    optional_biases: bool = False
    modules: Mapping[str, str] = field(default_factory=dict)
    gemma: Gemma | None = None
    written: tuple[str, ...] = ()
    capped: bool = False

    @property
    def block(self) -> Mapping[str, str]:
        """llama.cpp's names of a block's modules, with those of transformers."""
        return {**_BLOCK, **self.modules}


_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # a mistral model whose window holds its context computes what a llama model does, and a file does not tell them
        "llama": Architecture(
            "llama", "LlamaForCausalLM", interleaved=True, optional_biases=True, written=("mistral",)
        ),
        "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
        "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", optional_biases=True),
        "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", modules=_GEMMA, gemma=Gemma(2, 46, 4096, 50.0, 30.0)),
        "gemma3": Architecture(
            "gemma3_text", "Gemma3ForCausalLM", modules=_GEMMA, gemma=Gemma(6, 62, local_base=10000.0)
        ),
        "phi3": Architecture("phi3", "Phi3ForCausalLM", modules=_FUSED, capped=True),
    }
)
LABELS: Mapping[str, str] = {
    kind: label for label, one in ARCHITECTURES.items() for kind in (one.model_type, *one.written)
}
"""What models are called in a file, by the type of their config."""
_NAME = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<module>\w+)\.(?P<kind>weight|bias)")


def architecture_of(container: Container) -> Architecture:
    """The architecture of a file.

    Raises:
        RecipeError: it is none of `ARCHITECTURES`, or a variant of one that is not understood.
    """
    architecture = ARCHITECTURES.get(container.architecture)
    if architecture is None:
        raise RecipeError(
            "model",
            f"{container.path} holds a model of architecture {container.architecture!r}, which is not supported",
            action=f"supported are {', '.join(ARCHITECTURES)}; load others from their original folder or hub id",
        )
    if container.metadata.get(f"{container.architecture}.expert_count", 0):
        raise RecipeError(
            "model", f"{container.path} holds a mixture of experts", action="load it from its original folder"
        )
    return architecture


def config_values(container: Container) -> dict[str, Any]:
    """A file's config as transformers would write it to `config.json`.

    Every value the file states is set, also where it equals the class's default: a default is one checkpoint's value.

    Raises:
        RecipeError: a needed key is missing, or the rotary embedding is of a kind that is not understood.
    """
    architecture = architecture_of(container)
    heads = _metadata(container, "attention.head_count")
    hidden = _metadata(container, "embedding_length")
    head_width = container.metadata.get(f"{container.architecture}.attention.key_length", hidden // heads)
    embedding = container.tensors.get("token_embd.weight")
    if embedding is None:
        raise RecipeError(
            "model", f"{container.path} holds no token embedding", action="a vocabulary-only file has no weights"
        )
    special = special_tokens(container)
    values: dict[str, Any] = {
        "model_type": architecture.model_type,
        "architectures": [architecture.model_class],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _metadata(container, "feed_forward_length"),
        "num_hidden_layers": _metadata(container, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": container.metadata.get(f"{container.architecture}.attention.head_count_kv", heads),
        "head_dim": head_width,
        "max_position_embeddings": _metadata(container, "context_length"),
        "rms_norm_eps": _decimal(_metadata(container, "attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(container, head_width),
        "tie_word_embeddings": "output.weight" not in container.tensors,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
    }
    if architecture.optional_biases:
        values["attention_bias"] = "blk.0.attn_q.bias" in container.tensors
    if architecture.capped:
        values["sliding_window"] = None
    return values | (_gemma_values(container, architecture.gemma, values) if architecture.gemma else {})


def _gemma_values(container: Container, gemma: Gemma, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the config of a Gemma model has beyond that of a Llama model."""
    facts, prefix = container.metadata, container.architecture
    window = int(facts.get(f"{prefix}.attention.sliding_window", gemma.window))
    layers, rope = values["num_hidden_layers"], values["rope_parameters"]
    pattern = facts.get(f"{prefix}.attention.sliding_window_pattern", gemma.period)
    if isinstance(pattern, list):
        types = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    else:
        types = replace(gemma, period=pattern).layer_types(layers)
    if gemma.local_base:
        local = _decimal(facts.get(f"{prefix}.rope.freq_base_swa", gemma.local_base))
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return {
        "rope_parameters": rope,
        "sliding_window": window or values["max_position_embeddings"],
        "layer_types": types if window else ["full_attention"] * layers,
        "query_pre_attn_scalar": gemma.query_scalar(
            layers, values["hidden_size"], values["num_attention_heads"], values["head_dim"]
        ),
        "attn_logit_softcapping": facts.get(f"{prefix}.attn_logit_softcapping", gemma.attention_cap),
        "final_logit_softcapping": facts.get(f"{prefix}.final_logit_softcapping", gemma.final_cap) or None,
    }


def parameter_name(container: Container, tensor: str) -> str:
    """The transformers name of a tensor of the file: `blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`.

    Raises:
        RecipeError: the tensor has no counterpart; leaving it out would change the model without a word.
    """
    match = _NAME.fullmatch(tensor)
    if match is not None:
        block, module, kind = match["block"], match["module"], match["kind"]
        if block is None and module in _TOP:
            return f"{_TOP[module]}.{kind}"
        if block is not None and module in (modules := architecture_of(container).block):
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
    module, _, kind = parameter.rpartition(".")
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    table, inner = (_TOP, module) if block is None else (architecture.block, block[2])
    stem = next((short for short, name in table.items() if name == inner), None)
    if stem is None or kind not in ("weight", "bias"):
        raise UserError(f"{parameter} has no name in a GGUF file", action="export it with --to safetensors")
    return f"{stem}.{kind}" if block is None else f"blk.{block[1]}.{stem}.{kind}"


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
    return float(architecture.gemma is not None and tensor.endswith("norm.weight"))


def _metadata(container: Container, key: str) -> Any:
    full = f"{container.architecture}.{key}"
    if full not in container.metadata:
        raise RecipeError("model", f"{container.path} does not state {full}", action="fetch or convert the file again")
    value = container.metadata[full]
    if isinstance(value, list):
        raise RecipeError(
            "model",
            f"{container.path} states {full} layer by layer, which is not supported",
            action="load this model from its original folder or hub id",
        )
    return value


def _decimal(single: float) -> float:
    """The short decimal a float32 was made from: 9.999999747378752e-06 -> 1e-05; the same number as float32."""
    return float(str(np.float32(single)))


def _rope(container: Container, head_width: int) -> dict[str, Any]:
    prefix = f"{container.architecture}.rope"
    theta = _decimal(container.metadata.get(f"{prefix}.freq_base", 10000.0))
    kind = container.metadata.get(f"{prefix}.scaling.type", "none")
    rotated = container.metadata.get(f"{prefix}.dimension_count", head_width)
    factors = container.tensors.keys() & {"rope_freqs.weight", "rope_factors_long.weight"}
    if rotated != head_width or kind not in ("none", "linear") or factors:
        what = "per-frequency factors" if factors else f"{kind} scaling"
        what = f"only {rotated} of {head_width} dimensions rotated" if rotated != head_width else what
        raise RecipeError(
            "model",
            f"{container.path} has a rotary embedding with {what}, which is not supported",
            action="load this model from its original folder or hub id",
        )
    if kind == "linear":
        factor = _decimal(container.metadata.get(f"{prefix}.scaling.factor", 1.0))
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return {"rope_type": "default", "rope_theta": theta}
