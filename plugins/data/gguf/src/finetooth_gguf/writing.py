"""Writing a GGUF file from a folder in transformers' layout: metadata, tokenizer and tensors, one tensor in memory.

What is written is what `architectures` reads: the same table of names, the other way round. Metadata keys are those of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; tensors are stored as llama.cpp's own converter does it:
matrices in the type that is asked for, vectors in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import UserError
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.messages.shipped import stops_of
from gguf import GGUFWriter, RopeScalingType, quantize
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from finetooth_gguf.architectures import ARCHITECTURES, Architecture, tensor_name
from finetooth_gguf.k_blocks import ENCODERS, encode
from finetooth_gguf.mixes import STORED, block_of, type_of
from finetooth_gguf.special_tokens import CONTROL, USER_DEFINED

NORMAL, UNUSED = 1, 5
"""Types of a token: an ordinary one, and a row of the embedding that no token has."""


@dataclass(frozen=True)
class Spelling:
    """A tokenizer as a GGUF file states it.

    Attributes:
        tokens, types: by id.
        merges: of byte pairs, best first.
        ids: of the tokens with a part of their own, by llama.cpp's name of it (`bos`, `eos`, `padding`, `unknown`).
        adds_bos: the model reads a beginning-of-text token before every text.
        template: of a chat, Jinja.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    adds_bos: bool
    template: str | None


def refusal(config: Mapping[str, Any], stored: str) -> str:
    """Why a model cannot be written, from its config; empty if it can."""
    kind = str(config.get("model_type"))
    if _architecture(config) is None:
        known = ", ".join(sorted({architecture.model_type for architecture in ARCHITECTURES.values()}))
        return f"models of type {kind} cannot be written as GGUF here (only {known})"
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") not in ("default", "linear"):
        return f"its rotary embedding is of type {rope['rope_type']}, which cannot be written"
    if config.get("mlp_bias"):
        return "its feed-forward layers have biases, which cannot be written"
    if config.get("use_sliding_window"):
        return "its attention has a sliding window, which cannot be written"
    block = block_of(stored)
    odd = [name for name in ("hidden_size", "intermediate_size") if int(config[name]) % block]
    if odd:
        return f"{odd[0]} is {config[odd[0]]}, which blocks of {block} weights ({stored}) cannot fill"
    return ""


def write(weights: Path, spelling: Spelling, splitting: str, target: Path, stored: str, name: str) -> int:
    """Write a folder's model as a GGUF file.

    Args:
        weights: config and safetensors files.
        splitting: how text is cut before merging: a key of `tokenizer.SPLITTINGS`.
        stored: a key of `mixes.STORED`.
        name: of the model, for `general.name`.

    Returns:
        How many tensors.

    Raises:
        UserError: the folder lacks a tensor, or holds one that has no name in a GGUF file.
    """
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    architecture, label = _architecture(config) or (None, "")
    if architecture is None:
        raise UserError(f"{weights}: {refusal(config, stored)}", action="export it with --to safetensors")
    writer = GGUFWriter(target, label)
    try:
        _metadata(writer, config, stored, name)
        _vocabulary(writer, spelling, splitting)
        places = dict(_places(weights, config))
        types = types_of(places, stored, config)
        for tensor, (_, shape) in places.items():
            kind = types[tensor]
            block, block_bytes = GGML_QUANT_SIZES[kind]
            size = int(np.prod(shape)) // block * block_bytes
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with working(f"writing {target.name}") as show:
            for done, (tensor, (file, _)) in enumerate(places.items(), 1):
                numbers = stored_numbers(read_tensor(file, tensor, config), tensor, config, types[tensor])
                writer.write_tensor_data(numbers)
                show(f"writing {target.name}", done / len(places))
    finally:
        writer.close()
    return len(places)


def write_vocabulary(weights: Path, spelling: Spelling, splitting: str, target: Path, stored: str, name: str) -> None:
    """Write a file with everything but tensors, to look whether its tokenizer is the model's."""
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    _, label = _architecture(config) or (None, "")
    writer = GGUFWriter(target, label)
    try:
        _metadata(writer, config, stored, name)
        _vocabulary(writer, spelling, splitting)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def stored_numbers(
    values: npt.NDArray[np.float32], tensor: str, config: Mapping[str, Any], kind: GGMLQuantizationType
) -> npt.NDArray[Any]:
    """A tensor as the file holds it."""
    rows = np.ascontiguousarray(interleaved(values, tensor, config))
    if kind == GGMLQuantizationType.F32:
        return rows
    if kind == GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError(f"{tensor} has numbers beyond fp16", action="choose stored=bf16 or q8_0")
        return half
    return encode(rows, kind) if kind in ENCODERS else quantize(rows, kind)


def interleaved(values: npt.NDArray[np.float32], tensor: str, config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Rows of llama's query and key projections in llama.cpp's order: (head, half, pair) to (head, pair, half)."""
    architecture, _ = _architecture(config) or (None, "")
    module = tensor.split(".")[-2]
    if architecture is None or not architecture.interleaved or module not in ("attn_q", "attn_k"):
        return values
    heads = int(config["num_attention_heads"])
    if module == "attn_k":
        heads = int(config.get("num_key_value_heads") or heads)
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def read_tensor(file: Path, tensor: str, config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """A tensor of the folder by its name in the GGUF file, in float32."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        names = {tensor_name(name): name for name in list(opened.keys())}
        stored = opened.get_tensor(names[tensor])
    numbers: npt.NDArray[np.float32] = stored.to(torch.float32).numpy()
    return numbers


def places(weights: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Of each tensor that a GGUF file of the folder has, its file there and its shape."""
    return dict(_places(weights, json.loads((weights / "config.json").read_text(encoding="utf-8"))))


def types_of(
    places: Mapping[str, tuple[Path, tuple[int, ...]]], stored: str, config: Mapping[str, Any]
) -> dict[str, GGMLQuantizationType]:
    """The type of each tensor of `places`."""
    layers, tied = int(config["num_hidden_layers"]), "output.weight" not in places
    return {name: type_of(name, shape, stored, layers, tied=tied) for name, (_, shape) in places.items()}


def spelling_of(folder: Path, embeddings: int) -> Spelling:
    """The tokenizer of a folder.

    Args:
        embeddings: rows of the model's embedding; those without a token are filled.

    Raises:
        UserError: it is not byte-level BPE.
    """
    from transformers import AutoTokenizer

    fast: Any = AutoTokenizer.from_pretrained(str(folder))
    written = json.loads(fast.backend_tokenizer.to_str())
    model = written["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or '"ByteLevel"' not in json.dumps(written["decoder"]):
        raise UserError(
            f"the tokenizer is {model.get('type')}, and byte-level BPE is what can be written",
            action="export it with --to safetensors",
        )
    by_id = {int(index): token for token, index in fast.get_vocab().items()}
    added = {int(token["id"]): token for token in written["added_tokens"]}
    tokens, types = [], []
    for index in range(max(embeddings, max(by_id) + 1)):
        token = by_id.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        entry = added.get(index)
        kind = UNUSED if token is None else NORMAL if entry is None else CONTROL if entry["special"] else USER_DEFINED
        types.append(kind)
    merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    ids = {
        role: int(index)
        for role, index in (
            ("bos", fast.bos_token_id),
            ("eos", fast.eos_token_id),
            ("padding", fast.pad_token_id),
            ("unknown", fast.unk_token_id),
        )
        if index is not None
    }
    ends = stops_of(folder)
    ids |= dict(zip(("eot", "eom"), ends, strict=False))  # llama.cpp ends an answer at any of them
    begun = fast("a")["input_ids"][:1] == [ids.get("bos")]
    template = fast.chat_template if isinstance(fast.chat_template, str) else None
    return Spelling(tuple(tokens), tuple(types), merges, ids, begun, template)


def _architecture(config: Mapping[str, Any]) -> tuple[Architecture, str] | None:
    """What a config's type is called in a GGUF file, and how it is laid out there."""
    kind = config.get("model_type")
    return next(
        ((architecture, label) for label, architecture in ARCHITECTURES.items() if architecture.model_type == kind),
        None,
    )


def _metadata(writer: GGUFWriter, config: Mapping[str, Any], stored: str, name: str) -> None:
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    width = int(config.get("head_dim") or hidden // heads)
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    writer.add_name(name)
    writer.add_file_type(STORED[stored][1])
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _vocabulary(writer: GGUFWriter, spelling: Spelling, splitting: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(list(spelling.tokens))
    writer.add_token_types(list(spelling.types))
    writer.add_token_merges(list(spelling.merges))
    for role, index in spelling.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    writer.add_add_bos_token(spelling.adds_bos)
    if spelling.template is not None:
        writer.add_chat_template(spelling.template)


def _places(weights: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Path, tuple[int, ...]]]]:
    """Name in a GGUF file, then file and shape of each tensor.

    Raises:
        UserError: one has no name in a GGUF file.
    """
    from safetensors import safe_open

    for file in sorted(weights.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in list(opened.keys()):
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                yield tensor_name(name), (file, tuple(opened.get_slice(name).get_shape()))
