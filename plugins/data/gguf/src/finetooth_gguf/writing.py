"""Writing a GGUF file from a folder in transformers' layout: metadata, tokenizer and tensors, one tensor in memory.

What is written is what `architectures` reads: the same table of names, the other way round. Metadata keys are those of
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; tensors are stored as llama.cpp's own converter does it:
matrices in the type that is asked for, vectors in float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from finetooth_hooks.errors import UserError
from finetooth_modelfiles.gguf import sentence_pieces
from finetooth_modelfiles.gguf.architectures import BY_TYPE, stored_offset
from finetooth_modelfiles.gguf.configs import LOG_SHARE, LONG, YARN
from finetooth_modelfiles.gguf.layouts import Architecture, Gemma, value_of
from finetooth_modelfiles.gguf.package import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFWriter,
    RopeScalingType,
    quantize,
)
from finetooth_modelfiles.gguf.special_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.messages.shipped import stops_of

from finetooth_gguf.k_blocks import ENCODERS, encode
from finetooth_gguf.mixes import STORED, block_of, type_of
from finetooth_gguf.places import Place, head_width, layout_of, places_of, read_tensor, rope_of, stated_numbers


@dataclass(frozen=True)
class Spelling:
    """A tokenizer as a GGUF file states it.

    Attributes:
        tokens, types: by id.
        merges: of byte pairs, best first; empty where there are scores.
        ids: of the tokens with a part of their own, by llama.cpp's name of it (`bos`, `eos`, `padding`, `unknown`).
        adds_bos: the model reads a beginning-of-text token before every text.
        template: of a chat, Jinja.
        scores: by id, of a SentencePiece-like tokenizer; empty for byte-level BPE.
        whole_words: a piece that is a token is taken whole, regardless of the merges.
        strips: special tokens absorb the blanks after them, like Phi-3's.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    ids: Mapping[str, int]
    adds_bos: bool
    template: str | None
    scores: tuple[float, ...] = ()
    whole_words: bool = False
    strips: bool = False


REFUSED: Mapping[str, str] = {
    "mlp_bias": "its feed-forward layers have biases",
    "use_sliding_window": "its attention has a sliding window",
    "use_bidirectional_attention": "its attention sees later tokens",
}
"""Settings that must be off, with their meanings."""
SIZES = ("hidden_size", "intermediate_size", "moe_intermediate_size")
"""Settings that say how long a matrix's rows are."""
WINDOWLESS = ("mistral", "mixtral")
"""Types of models that may have a window, which llama.cpp would not compute."""


def refusal(config: Mapping[str, Any], stored: str) -> str:
    """Why a model cannot be written, from its config; empty if it can."""
    if (kind := str(config.get("model_type"))) not in BY_TYPE:
        return f"models of type {kind} cannot be written as GGUF here (only {', '.join(sorted(BY_TYPE))})"
    architecture, rope = layout_of(config), rope_of(config)
    known = ("default", "linear", *(["llama3"] if architecture.long else []), *(["yarn"] if architecture.yarn else []))
    for part, written in ((rope, known), (_local_rope(config), ("default",))):
        if (kind := part.get("rope_type") or part.get("type") or "default") not in written:
            return f"its rotary embedding is of type {kind}, which cannot be written"
    if rope.get("rope_type") == "llama3" and (other := {key: rope.get(key) for key in LONG}) != LONG:
        return f"its rotary embedding has {other}, and only {LONG} can be written"
    if rope.get("rope_type") == "yarn" and (why := _yarn_refusal(rope)):
        return why
    if (share := _turned(config)) != 1.0 and not architecture.partial:
        return f"its rotary embedding rotates {share} of each head, which cannot be written"
    if meaning := next((meaning for setting, meaning in REFUSED.items() if config.get(setting)), ""):
        return f"{meaning}, which cannot be written"
    why = _gemma_refusal(config, architecture.gemma) if architecture.gemma else _window_refusal(config)
    why, block = why or _fixed_refusal(config, architecture), block_of(stored)
    odd_sizes = [name for name in SIZES if name in config and int(config[name]) % block]
    if not why and odd_sizes:
        return (
            f"{odd_sizes[0]} is {config[odd_sizes[0]]}, which is not a multiple of the {block} weights of a block "
            f"({stored})"
        )
    return why


def _yarn_refusal(rope: Mapping[str, Any]) -> str:
    odd = {key: rope[key] for key, usual in YARN.items() if rope.get(key, usual) != usual}
    if odd:
        return f"its YaRN embedding has {odd}, and llama.cpp computes with {dict(YARN)}"
    same = rope.get("mscale") and rope.get("mscale") == rope.get("mscale_all_dim")
    return "" if same else "its YaRN embedding has no mscale equal to its mscale_all_dim, which cannot be written"


def _window_refusal(config: Mapping[str, Any]) -> str:
    window, context = config.get("sliding_window"), int(config["max_position_embeddings"])
    if config["model_type"] not in WINDOWLESS or not window or window >= context:
        return ""
    return (
        f"its sliding_window is {window} and its context {context}: llama.cpp has no window for models of type "
        f"{config['model_type']}, which would attend to more than they were trained with"
    )


def _fixed_refusal(config: Mapping[str, Any], architecture: Architecture) -> str:
    """Why llama.cpp would compute something else: it has no key for a setting that differs."""
    whole = whole_config(config) if architecture.fixed else {}
    for setting, value in architecture.fixed.items():
        if (own := whole.get(setting)) != (wanted := value_of(value, whole)):
            return f"its {setting} is {own}, and llama.cpp computes with {wanted}"
    return ""


def whole_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with transformers' defaults for missing values, and with other names of the same settings."""
    from transformers import AutoConfig

    made: Any = AutoConfig.for_model(**{name: _plain(value) for name, value in config.items()})
    others = {name: getattr(made, own) for name, own in made.attribute_map.items() if hasattr(made, own)}
    return {**made.to_dict(), **others}


def _plain(value: Any) -> Any:
    """Infinity, which config.json spells as a mapping, as a number."""
    if isinstance(value, Mapping) and "__float__" in value:
        return float(value["__float__"])
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _gemma_refusal(config: Mapping[str, Any], gemma: Gemma) -> str:
    """Why llama.cpp would compute something else: it states the order of layers and the scale of queries itself."""
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    scalar = gemma.query_scalar(layers, int(config["hidden_size"]), heads, head_width(config))
    fixed: dict[str, Any] = {
        "layer_types": gemma.layer_types(layers),
        "query_pre_attn_scalar": scalar,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
    }
    if gemma.attention_cap is None:
        fixed["attn_logit_softcapping"] = None
    for setting, value in fixed.items():
        if config.get(setting, value) not in (value, None):
            return f"its {setting} is {config[setting]}, and llama.cpp computes with {value}"
    caps = {"attn_logit_softcapping": gemma.attention_cap, "final_logit_softcapping": gemma.final_cap}
    missing = [setting for setting, cap in caps.items() if cap and not config.get(setting, cap)]
    return f"it has no {missing[0]}, and llama.cpp computes with {caps[missing[0]]}" if missing else ""


def write(weights: Path, spelling: Spelling, splitting: str, target: Path, stored: str, name: str) -> int:
    """Write a folder's model as a GGUF file.

    Args:
        weights: config and safetensors files.
        splitting: how text is cut before merging: a key of `tokenizer.SPLITTINGS`, or of `sentence_pieces.PREFIXES`.
        stored: a key of `mixes.STORED`.
        name: of the model, for `general.name`.

    Returns:
        How many tensors.

    Raises:
        UserError: the folder lacks a tensor, or holds one that has no name in a GGUF file.
    """
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(target, BY_TYPE[config["model_type"]][0])
    try:
        _metadata(writer, config, stored, _model_name(name, spelling))
        for key, by_layer in stated_numbers(weights, layout_of(config)).items():
            writer.add_array(key, by_layer)
        _vocabulary(writer, spelling, splitting)
        places = places_of(weights, config)
        types = types_of(places, stored, config)
        for tensor, place in places.items():
            kind, shape = types[tensor], place.shape
            block, block_bytes = GGML_QUANT_SIZES[kind]
            size = int(np.prod(shape)) // block * block_bytes
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with working(f"writing {target.name}") as show:
            for done, (tensor, place) in enumerate(places.items(), 1):
                numbers = stored_numbers(read_tensor(place), tensor, config, types[tensor])
                writer.write_tensor_data(numbers)
                show(f"writing {target.name}", done / len(places))
    finally:
        writer.close()
    return len(places)


def write_vocabulary(weights: Path, spelling: Spelling, splitting: str, target: Path, stored: str, name: str) -> None:
    """Write a file with everything but tensors, to look whether its tokenizer is the model's."""
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(target, BY_TYPE[config["model_type"]][0])
    try:
        _metadata(writer, config, stored, _model_name(name, spelling))
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
    rows = np.ascontiguousarray(laid_out(values, tensor, config))
    rows = rows.reshape(-1, rows.shape[-1]) if rows.ndim > 2 else rows
    if kind == GGMLQuantizationType.F32:
        return rows
    if kind == GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError(f"{tensor} has numbers beyond fp16", action="choose stored=bf16 or q8_0")
        return half
    return encode(rows, kind) if kind in ENCODERS else quantize(rows, kind)


def laid_out(values: npt.NDArray[np.float32], tensor: str, config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """A tensor's numbers as a file has them: Gemma's norms with 1 added, rows of llama's query and key projections in
    llama.cpp's order: (head, half, pair) to (head, pair, half)."""
    architecture, module = layout_of(config), tensor.split(".")[-2]
    if offset := stored_offset(architecture, tensor):
        return values + np.float32(offset)
    if not architecture.interleaved or module not in ("attn_q", "attn_k"):
        return values
    heads = int(config["num_attention_heads"])
    if module == "attn_k":
        heads = int(config.get("num_key_value_heads") or heads)
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def types_of(places: Mapping[str, Place], stored: str, config: Mapping[str, Any]) -> dict[str, GGMLQuantizationType]:
    """The type of each tensor of `places`."""
    layers, tied = int(config["num_hidden_layers"]), "output.weight" not in places
    return {name: type_of(name, place.shape, stored, layers, tied=tied) for name, place in places.items()}


def spelling_of(folder: Path, embeddings: int) -> Spelling:
    """The tokenizer of a folder.

    Args:
        embeddings: rows of the model's embedding; those without a token are filled, and tokens without one are left
            out (Gemma 3's text models lack a row for their tokenizer's last token, of images).

    Raises:
        UserError: it is not byte-level BPE.
    """
    from transformers import AutoTokenizer

    fast: Any = AutoTokenizer.from_pretrained(str(folder), mistral_format=False)
    written = json.loads(fast.backend_tokenizer.to_str())
    model, fallback = written["model"], bool(written["model"].get("byte_fallback"))
    if model.get("type") != "BPE" or not (fallback or '"ByteLevel"' in json.dumps(written["decoder"])):
        raise UserError(
            f"the tokenizer is {model.get('type')}, and only BPE can be written, byte-level or with byte fallback",
            action="export it with --to safetensors",
        )
    by_id = {int(index): token for token, index in fast.get_vocab().items()}
    added = {int(token["id"]): token for token in written["added_tokens"]}
    rows = [
        _row(index, by_id.get(index), added.get(index), str(fast.unk_token), pieces=fallback)
        for index in range(embeddings)
    ]
    tokens, types = [token for token, _ in rows], [kind for _, kind in rows]
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    stripping = {token["content"] for token in added.values() if token["rstrip"]}
    strips = {token["content"] for token in added.values()} - set(sentence_pieces.KEPT) == stripping != set()
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
    scores = sentence_pieces.scores_of(tokens, types, pairs) if fallback else ()
    merges = () if fallback else tuple(" ".join(pair) for pair in pairs)
    strips = strips and set(sentence_pieces.NEEDED) <= set(tokens)
    whole = bool(model.get("ignore_merges"))
    return Spelling(tuple(tokens), tuple(types), merges, ids, begun, template, scores, whole, strips)


def _row(
    index: int, token: str | None, added: Mapping[str, Any] | None, unknown: str, *, pieces: bool
) -> tuple[str, int]:
    """A token as the file spells it, with its type.

    Args:
        added: what the tokenizer says of a token that it finds in a text before everything else.
        pieces: the tokenizer is SentencePiece-like.
    """
    if token is None:
        return f"[PAD{index}]", UNUSED
    if pieces and token == unknown:
        return token, UNKNOWN
    if added is None:
        return token, BYTE if pieces and token in sentence_pieces.BYTES else NORMAL
    if added["special"]:
        return token, CONTROL
    if pieces and sentence_pieces.BLANK in token:  # llama.cpp looks for it in the text with its blanks
        return (token.replace(sentence_pieces.BLANK, " "), USER_DEFINED) if added["normalized"] else (token, NORMAL)
    return token, USER_DEFINED


def _turned(config: Mapping[str, Any]) -> float:
    """The share of each head that rotary angles turn."""
    return float(rope_of(config).get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0))


def _local_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary embedding of layers with a window, where they have one of their own."""
    stated: Mapping[str, Any] = (config.get("rope_parameters") or {}).get("sliding_attention", {})
    return stated


def _model_name(name: str, spelling: Spelling) -> str:
    """A model's name for llama.cpp, which takes one with phi-3 or phi3 in it for Phi-3 and fails without its tokens."""
    plain = re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)
    return f"{plain} ({sentence_pieces.STRIPPED})" if spelling.strips else plain


def _metadata(writer: GGUFWriter, config: Mapping[str, Any], stored: str, name: str) -> None:
    architecture, rope = layout_of(config), rope_of(config)
    writer.add_name(name)
    writer.add_file_type(STORED[stored][1])
    for key, value in _facts(config, architecture, rope).items():
        _fact(writer, f"{BY_TYPE[config['model_type']][0]}.{key}", value)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_yarn_log_mul(LOG_SHARE * float(rope.get("mscale_all_dim") or 0.0))
    if architecture.gemma is None:
        return
    writer.add_sliding_window(int(config["sliding_window"]))
    if local := _local_rope(config):
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))
    if cap := config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(float(cap))
    if cap := config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(cap))


def _facts(config: Mapping[str, Any], architecture: Architecture, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and settings by their keys, without the name of the architecture; None is not stated."""
    whole = whole_config(config) if architecture.keys or architecture.stated else config
    context, heads = int(config["max_position_embeddings"]), int(config["num_attention_heads"])
    width, window = head_width(config), config.get("sliding_window")
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if architecture.kinds:  # none in layers without attention
        by_layer = [0 if kind == architecture.kinds[0] else kv_heads for kind in whole["layer_types"]]
    key, setting = architecture.epsilon
    return {
        "vocab_size": int(config["vocab_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "context_length": min(context, window or context) if architecture.capped else context,
        "embedding_length": int(config["hidden_size"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": by_layer if architecture.kinds else kv_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": int(width * _turned(config)),
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
        key: float(config[setting]),
        **{key: whole[setting] for key, setting in architecture.keys.items()},
        **{key: value_of(value, whole) for key, value in architecture.stated.items()},
    }


def _fact(writer: GGUFWriter, key: str, value: Any) -> None:
    """State a number, a yes, or numbers by layers; llama.cpp takes scales in float32 alone."""
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float) or key.endswith("scale"):
        writer.add_float32(key, float(value))
    else:
        writer.add_uint32(key, int(value))


def _vocabulary(writer: GGUFWriter, spelling: Spelling, splitting: str) -> None:
    writer.add_tokenizer_model("llama" if spelling.scores else "gpt2")
    writer.add_tokenizer_pre("default" if spelling.scores else splitting)
    writer.add_token_list(list(spelling.tokens))
    writer.add_token_types(list(spelling.types))
    if spelling.scores:
        writer.add_token_scores(list(spelling.scores))
        writer.add_add_space_prefix(sentence_pieces.PREFIXES[splitting])
    else:
        writer.add_token_merges(list(spelling.merges))
    for role, index in spelling.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", index)
    writer.add_add_bos_token(spelling.adds_bos)
    if spelling.template is not None:
        writer.add_chat_template(spelling.template)
