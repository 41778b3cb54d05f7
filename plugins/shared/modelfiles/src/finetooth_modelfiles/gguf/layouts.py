"""How one kind of model is laid out in a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
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
PARTS = ("gate", "up", "down")
RENAMED_EXPERTS = {
    rf"(experts\.\d+)\.w{number}\.": rf"\1.{part}_proj." for number, part in ((1, "gate"), (3, "up"), (2, "down"))
}
COUNTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
WIDTH = {"expert_feed_forward_length": "moe_intermediate_size"}
GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
"""Keys of a file and the settings that they become, in more than one architecture."""
Value = int | float | bool | str | None | Callable[[Mapping[str, Any]], Any]
"""A value, or what gives it for a config."""


def experts(path: str) -> dict[str, str]:
    """Modules of experts in a layer."""
    return {f"ffn_{part}_exps": f"{path}.experts.{part}_proj" for part in PARTS}


def shared_experts(path: str) -> dict[str, str]:
    """Modules of what all tokens go through, next to experts."""
    return {f"ffn_{part}_shexp": f"{path}.{part}_proj" for part in PARTS}


def value_of(value: Value, config: Mapping[str, Any]) -> Any:
    """The value for a config."""
    return value(config) if callable(value) else value


@dataclass(frozen=True)
class Gemma:
    """What Gemma's models have beyond Llama's from the second on, as llama.cpp computes them.

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
        """The kind of each layer, as transformers calls it."""
        return ["sliding_attention" if (n + 1) % self.period else "full_attention" for n in range(layers)]

    def query_scalar(self, layers: int, hidden: int, heads: int, head_width: int) -> int:
        """Queries are divided by its root."""
        return hidden // heads if layers == self.widest else head_width


@dataclass(frozen=True)
class Change:
    """A parameter that a file holds otherwise than transformers does.

    Attributes:
        parameter: its name in a layer of transformers' model, `conv.conv.weight`.
        tensors: names of what it becomes in a block of the file, in their order.
        written: from its numbers and the config to those of the tensors.
        read: from numbers of the tensors and the config to its own; None: they are read as others are.
    """

    parameter: str
    tensors: tuple[str, ...]
    written: Callable[[Floats, Mapping[str, Any]], tuple[Floats, ...]]
    read: Callable[[Sequence[Floats], Mapping[str, Any]], Floats] | None = None

    def shapes_written(self, shape: tuple[int, ...], config: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """Shapes of the tensors, by that of the parameter."""
        return [made.shape for made in self.written(np.ones(shape, np.float32), config)]

    def shape_read(self, shapes: Sequence[tuple[int, ...]], config: Mapping[str, Any]) -> tuple[int, ...]:
        """The other way round."""
        assert self.read is not None
        return self.read([np.ones(shape, np.float32) for shape in shapes], config).shape


@dataclass(frozen=True)
class Architecture:
    """How one `general.architecture` maps onto a transformers model.

    Attributes:
        model_type: of the transformers config.
        model_class: the transformers class.
        interleaved: the converter reordered the rows of the query and key projections for interleaved rotary pairs
            (llama.cpp's `permute`); they must be put back for rotation by halves.
        optional: settings that say whether the model has a tensor, with that tensor's name in a block of the file.
        modules: llama.cpp's names of a block's modules that are not those of `_BLOCK`, with those of transformers;
            a name with a dot is that of a tensor. Stacks of experts have the names of single ones, without the number.
        renamed: regular expressions for parts of names in a folder, with what stands for them in transformers' model.
        written: other types of configs that are written as this one.
        partial: rotary angles turn a part of each head, which the file states.
        capped: the file states a context no longer than the model's sliding window: llama.cpp has no window here.
        label: what a file calls it, where that is not its key in `ARCHITECTURES`.
        epsilon: of its norms: the key of the file, and the setting.
        keys: what a file states besides, with the setting that it becomes.
        stated: what each file of it states: a value, or what gives it for a config.
        fixed: settings that llama.cpp knows without a file: a value, or what gives it for a config.
        one_row: tensors that transformers holds with a first dimension of 1, and a file without it.
        ahead: last layers may be there that only predict further ahead, which transformers does not read.
        long: Llama 3.1's rotary angles may be stated, as a factor for each frequency.
        added: what a file adds to the weights of norms.
        splitting: what llama.cpp's converter writes as `tokenizer.ggml.pre`; empty: by the tokenizer alone.
        top: llama.cpp's names of modules outside of layers that are not those of `_TOP`.
        changes: parameters that it holds otherwise.
        stated_weights: parameters of a layer that a file states in its metadata, as a list by layers, with the key
            there and the shape of each.
        kinds: of layers without and with attention, where a file states heads layer by layer.
        read: settings of a config that is made of a file: a value, or what gives it for the config so far.
        lacking: settings that a file without their key has as None.
        width: the key of a head's width as far as rotary angles count it.
        yarn: rotary angles may be YaRN's.
    """

    model_type: str
    model_class: str
    interleaved: bool = False
    optional: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    gemma: Gemma | None = None
    written: tuple[str, ...] = ()
    capped: bool = False
    partial: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    epsilon: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    keys: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, Value] = field(default_factory=dict)
    fixed: Mapping[str, Value] = field(default_factory=dict)
    one_row: tuple[str, ...] = ()
    ahead: bool = False
    long: bool = False
    added: float = 0.0
    splitting: str = ""
    top: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    stated_weights: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    kinds: tuple[str, str] | None = None
    read: Mapping[str, Value] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    width: str = "attention.key_length"
    yarn: bool = False

    @property
    def block(self) -> Mapping[str, str]:
        """llama.cpp's names of a block's modules, with those of transformers."""
        return {stem: module for stem, module in {**_BLOCK, **self.modules}.items() if module}

    @property
    def outside(self) -> Mapping[str, str]:
        """llama.cpp's names of modules outside of layers, with those of transformers."""
        return {stem: module for stem, module in {**_TOP, **self.top}.items() if module}

    def stated_weight(self, part: str) -> tuple[str, int, tuple[int, ...]] | None:
        """Key, layer and shape of a parameter that a file states, of which `part` is called KEY:LAYER."""
        key, _, layer = part.rpartition(":")
        return next(((key, int(layer), shape) for of, shape in self.stated_weights.values() if of == key), None)

    def change_of(self, tensor: str) -> Change | None:
        """How a tensor of the file is read; None: it is a parameter, or a part of a stack, as it stands."""
        inner = tensor.split(".", 2)[-1] if tensor.startswith("blk.") else ""
        return next((change for change in self.changes if change.read and inner in change.tensors), None)

    @property
    def mixture(self) -> bool:
        """Whether it has experts."""
        return "ffn_gate_exps" in self.modules
