"""The architectures a GGUF file may hold: the config each becomes, and how each of its tensors is called and laid out.

The metadata keys and tensor names are llama.cpp's (gguf-py `constants.py`, `tensor_mapping.py`); the config keys and
parameter names are those of transformers. An architecture is here only when a test round-trips it against the
transformers model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import RecipeError, UserError

from finetooth_gguf.container import Container
from finetooth_gguf.special_tokens import special_tokens


@dataclass(frozen=True)
class Architecture:
    """How one `general.architecture` maps onto a transformers model.

    Attributes:
        model_type: of the transformers config.
        model_class: the transformers class.
        interleaved: the converter reordered the rows of the query and key projections for interleaved rotary pairs
            (llama.cpp's `permute`); they must be put back for rotation by halves.
        optional_biases: the transformers model has attention biases only if its config says so (`attention_bias`).
    """

    model_type: str
    model_class: str
    interleaved: bool = False
    optional_biases: bool = False


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture("llama", "LlamaForCausalLM", interleaved=True, optional_biases=True),
        "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
        "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", optional_biases=True),
    }
)

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
    return values


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
        if block is not None and module in _BLOCK:
            return f"model.layers.{block}.{_BLOCK[module]}.{kind}"
    raise RecipeError(
        "model",
        f"{container.path} holds a tensor {tensor}, which a {container.architecture} model does not have here",
        action="load this model from its original folder or hub id",
    )


def tensor_name(parameter: str) -> str:
    """The name in a GGUF file of a transformers parameter: the other way round than `parameter_name`.

    Raises:
        UserError: it has none.
    """
    module, _, kind = parameter.rpartition(".")
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    table, inner = (_TOP, module) if block is None else (_BLOCK, block[2])
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
    if rotated != head_width or kind not in ("none", "linear") or "rope_freqs.weight" in container.tensors:
        what = "per-frequency factors" if "rope_freqs.weight" in container.tensors else f"{kind} scaling"
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
