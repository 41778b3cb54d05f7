"""Models: tokenizers, loaders, families, and the facts of a model before its weights are loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from finetooth_hooks.compute.attention import AttentionNeeds
from finetooth_hooks.compute.layers import LayerFacts
from finetooth_hooks.compute.quantizers import Quantizer, Stored
from finetooth_hooks.plan import Pick


class Tokenizer(Protocol):
    """Converts text to token ids and back, with any library. `finetooth_toolbox.text.tokenizers.FastTokenizer` wraps a
    transformers tokenizer; others derive from `finetooth_hooks.TokenizerBase`, whose methods of a capability raise an
    error."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.TOKENIZER`."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        ...

    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...

    @property
    def adds_bos(self) -> bool:
        """The model was trained with the beginning-of-text token before every text."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that came with it."""
        ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text` without added tokens. With `special`, the spelling of a special token becomes that token;
        without, it stays plain text."""
        ...

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their half-open character ranges in `text`."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str: ...

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling; None if the vocabulary lacks it."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files; transformers' AutoTokenizer gives the same ids from them."""
        ...

    def encode_from(self, stretches: Sequence[tuple[str, int | None]]) -> list[tuple[list[int], int]]:
        """Ids of each text, none of them special, and the index of the first token that starts at or after a character.
        Capability `stretches`.

        Args:
            stretches: pairs of a text and a character position; None is the end of the text.
        """
        ...

    def changed(self, changes: TokenChanges) -> Tokenizer:
        """A copy with other tokens. Capability `changes`.

        Args:
            changes: which tokens.

        Raises:
            RecipeError: a new token is already in the vocabulary, or a token to rename is missing.
        """
        ...


@dataclass(frozen=True)
class NewToken:
    """A token that a recipe adds to a tokenizer.

    Attributes:
        text: its spelling.
        special: it is markup. Any text with the spelling of a token that is not special becomes the token, and decoding
            shows it.
    """

    text: str
    special: bool = True


@dataclass(frozen=True)
class TokenChanges:
    """What a recipe changes about a tokenizer.

    Attributes:
        added: new tokens, with consecutive ids in this order.
        renamed: new spellings of unused tokens, by token id.
        roles: spellings by role: `pad_token`, `eos_token`.
    """

    added: tuple[NewToken, ...] = ()
    renamed: Mapping[int, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.renamed or self.roles)


@dataclass(frozen=True)
class ModelInfo:
    """A base model before its weights are loaded.

    Attributes:
        reference: as the recipe names it.
        loader: full name of the loader's entry.
        model_type: of its config; it decides the family.
        config: the config in transformers' shape.
        parameters: their number.
        weight_bytes: bytes of the weights on disk.
        files: the files of the model.
        revision: hub revision or content hash, if known.
        contents: SHA-256 by name of every file that affects the model's output or tokens (weights, config, tokenizer,
            template); the files may be read at the first access. Empty: unknown.
        resident_bytes: memory of the loaded weights, in bytes, if it does not follow from their number and the run's
            precision; None: it does.
        stored: storage format of the linear weights, if they are not plain numbers. A recipe that would change such
            weights is refused, even if no kernel computes with the format and they are plain numbers in memory. None:
            plain numbers.
        stored_weights: number of weights that keep this format in memory; all others have the run's precision. 0:
            unknown, or none.
        published: the name by which other tools load the model: its hub id, or an absolute folder in transformers'
            layout. An adapter's artifact names its base so. Empty: the reference.
        expert_weights: number of weights of experts that the model holds as one tensor of three axes; a quantizer
            stores them in addition to the linear weights.
        loading_bytes: peak host memory while loading, in bytes, if it exceeds the loaded weights: a model that merges
            an adapter is first held in fp32. None: it does not exceed them.
        by_module: plain weights move to an accelerator one module after the other, so the host never holds all of them.
    """

    reference: str
    loader: str
    model_type: str
    config: Mapping[str, Any]
    parameters: int
    weight_bytes: int
    files: tuple[Path, ...] = ()
    revision: str = ""
    resident_bytes: int | None = None
    stored: Stored | None = None
    published: str = ""
    stored_weights: int = 0
    expert_weights: int = 0
    loading_bytes: int | None = None
    by_module: bool = False
    contents: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 over `contents`, hexadecimal; empty if they are unknown.

        The first call may read the files, which takes seconds per gigabyte.
        """
        if not self.contents:
            return ""
        return hashlib.sha256(json.dumps(sorted(self.contents.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: `softcap(scale * (h W^T + b))`; softcap(x) is `cap * tanh(x / cap)`.

    Attributes:
        module: path of the linear module, `lm_head`.
        scale: factor on the logits.
        softcap: `cap` in the formula; None is off.
    """

    module: str = "lm_head"
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Block:
    """A decoder of the usual kind, which a backend may compute with its own code. Each layer computes:

        h = h + output(attend(rotate(query(n)), rotate(key(n)), value(n)))    n = attention_norm(h), root-mean-square
        h = h + down(activation(gate(n)) * up(n))                             n = ffn_norm(h)

    with causal attention over all earlier positions, grouped key-value heads, scores scaled by 1 / sqrt(head_dim) or by
    the family's factor, no dropout, and `final_norm` at the end. The attributes, `ModelFacts.attention` (a cap on
    scores, sinks) and `ModelFacts.per_layer` (windows) describe deviations. A backend compares its results with the
    model's to be sure.

    Attributes:
        eps: of the norms.
        embedding, rotary, final_norm: module paths in the body; `rotary` computes cosines and sines of positions.
        attention_norm, ffn_norm, query, key, value, output, gate, up, down: module paths in a layer. An empty norm: the
            layer lacks it. Empty `key` and `value`: the module `query` computes all three, concatenated. Empty `up`:
            `gate` computes both. Empty `gate`: `activation(up(n))` is the input of `down`.
        query_norm, key_norm: module paths of norms before the rotation, over each head or over all heads together,
            according to the size of their weights; empty: none.
        attention_after, ffn_after: module paths of norms on the outputs of attention and feed-forward before they are
            added; empty: none.
        feed_forward: module path of a feed-forward block that is called as a whole, instead of gate, up and down.
        parallel: the feed-forward block reads the same residual stream as attention.
        norms: computation of the norms: root mean square; the same with 1 added to the weight; or a call of their
            modules.
        rotations: of each layer, the layer type that `rotary` receives besides states and positions; an empty text:
            `rotary` receives no type; None: the layer does not rotate. Empty: all layers rotate alike.
        interleaved: the rotation turns the pairs (2 i, 2 i + 1), not the pairs (i, i + R / 2).
        sinks: path in a layer of the parameter with the scores of `AttentionNeeds.sinks`.
        activation: `silu`, `gelu` or `gelu_tanh`.
        embedding_scale: factor on embeddings at the start of the residual stream.
        residual_scale: factor on the outputs of attention and feed-forward before they are added to it.
        attention_scale: factor on attention's scores; None: 1 / sqrt(head_dim).
    """

    eps: float
    embedding: str = "embed_tokens"
    rotary: str = "rotary_emb"
    final_norm: str = "norm"
    attention_norm: str = "input_layernorm"
    ffn_norm: str = "post_attention_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    query_norm: str = ""
    key_norm: str = ""
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    attention_after: str = ""
    ffn_after: str = ""
    feed_forward: str = ""
    parallel: bool = False
    norms: Literal["rms", "rms_plus_one", "own"] = "rms"
    rotations: tuple[str | None, ...] = ()
    interleaved: bool = False
    sinks: str = "self_attn.sinks"
    activation: str = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None


@dataclass(frozen=True)
class LowRank:
    """An adapted linear module that computes its base and a low-rank addition: base(x) + scale (x A^T) B^T.

    With DoRA each output, without the base's bias, is multiplied by m and divided by the length of its row of
    W + scale B A.

    Attributes:
        base: the framework's linear module. Its weight is plain numbers, or a quantizer's module that can compute them;
            a module that can only be called has no `LowRank`.
        a, b: (rank, inputs) and (outputs, rank); None while the adapter is switched off.
        magnitude: DoRA's m, (outputs,); None without DoRA or without a and b.
        dropout: the module that drops at random from the rows that a reads; None if nothing does.
    """

    base: Any
    a: Any | None = None
    b: Any | None = None
    scale: float = 1.0
    magnitude: Any | None = None
    dropout: Any | None = None


@dataclass(frozen=True)
class ModelFacts:
    """A family's description of one model.

    Attributes:
        hidden_size, layers, heads, kv_heads, head_dim, ffn_size, vocab_size: sizes.
        max_positions: longest supported sequence, in tokens.
        layer_path: module path of the list of decoder layers, `model.layers`.
        body: module path of the model without head, `model`.
        head: how hidden states become logits.
        attention_targets: names of linear modules inside attention, for adapters.
        linear_targets: names of all linear modules of the decoder layers except `untargeted`.
        renderer: the renderer pick for its chat markup.
        tied: head and embedding share their weight.
        first_loss: (low, high) of a healthy first training loss, in nats per token.
        block: computation of a decoder layer of the usual kind; None: only the model's own code computes it.
        new_tokens: ids of tokens that the recipe added, with untrained embeddings; set from the recipe, not by the
            family.
        untargeted: names of linear modules that adapters skip unless a recipe names them, because an adapter on them
            cannot be merged or served: projections of linear attention, for example.
        attention: requirements of its layers on attention besides products and a softmax.
        towers: module paths of the encoders of images or sound, with the modules between them and the decoder.
        tower_parameters: number of parameters of the towers.
        modules: returns (inputs, outputs) of every linear module and embedding by path; called only if the other facts
            do not determine them. Set from the loader (`Loader.modules`), not by the family.
        per_layer: facts of each layer, if layers differ or hold experts. Empty: all layers are as described above.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    layer_path: str
    body: str
    head: Head
    attention_targets: tuple[str, ...]
    linear_targets: tuple[str, ...]
    renderer: Pick
    tied: bool = False
    first_loss: tuple[float, float] = (0.02, 7.0)
    block: Block | None = None
    new_tokens: tuple[int, ...] = ()
    untargeted: tuple[str, ...] = ()
    attention: AttentionNeeds = field(default_factory=AttentionNeeds)
    towers: tuple[str, ...] = ()
    tower_parameters: int = 0
    modules: Callable[[], Mapping[str, tuple[int, int]]] | None = field(default=None, compare=False, repr=False)
    per_layer: tuple[LayerFacts, ...] = ()


@dataclass(frozen=True)
class ModelTensors:
    """A model whose tensors are read one by one, so that a writer never holds it whole.

    Attributes:
        model: the framework's model without memory (for `torch` a transformers model on the device `meta`), with plain
            linear modules. Its `state_dict` names the tensors.
        files: file name of every tensor in a file, a tied pair once. A writer of the model may write as many files.
        read: returns a tensor by name, in host memory: plain numbers with the model's shape. Quantised tensors of a
            file or a quantizer are in fp32, all others in the requested precision, or the one that the model fixes.
    """

    model: Any
    files: Mapping[str, str]
    read: Callable[[str], Any]


class Loader(Protocol):
    """Loads models; built from the recipe's `model` section and the loader's own options. A loader derives from
    `finetooth_hooks.LoaderBase`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.LOADER`."""
        ...

    def describe(self, reference: str) -> ModelInfo:
        """Describe a model by config and sizes, without reading weights.

        Raises:
            RecipeError: the reference does not exist or is not a model, or a needed package is missing.
        """
        ...

    def sketch(self, reference: str) -> ModelInfo:
        """Describe a model from its config alone, for memory estimates; its weights may be missing. If config and
        weights are one file, the result is that of `describe`.

        Raises:
            RecipeError: as `describe`.
        """
        ...

    def tokenizer(self, reference: str) -> Tokenizer: ...

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None,
        meta: bool = False,
    ) -> Any:  # fmt: skip
        """The framework's model with its weights: for `torch` a transformers model in eval mode.

        Args:
            precision: of the weights, `fp32`, `bf16`, `fp16`.
            quantizer: stores the linear weights one after the other during loading; None: they stay in `precision`.
            meta: reads no weights and takes no memory for them on any device. Modules, names, shapes and types are
                those of the loaded model; the caller fills the weights in, a strategy rank by rank (`tensors`).
                Capability `meta`; passed only with it.

        Raises:
            RecipeError: the storage is unknown until the weights are read, for example with `meta` and a quantizer.
        """
        ...

    def tensors(
        self, reference: str, *, framework: str, precision: str, quantizer: Quantizer | None = None
    ) -> ModelTensors | None:
        """The tensors of `load` with the same arguments, read one by one. None if the model must be loaded whole: its
        files and its modules name tensors differently, or its quantizer needs the whole model. Capability `tensors`.

        Raises:
            RecipeError: as `load`.
        """
        ...

    def modules(self, reference: str) -> Mapping[str, tuple[int, int]]:
        """(inputs, outputs) of every linear module and embedding by path, without reading a weight. Capability
        `modules`."""
        ...

    def widen(self, model: Any, size: int, new: Sequence[int]) -> None:
        """Add embedding rows to a loaded model until every token has one; new rows are the mean of the trained rows.
        Capability `widen`.

        Args:
            size: number of ids of the tokenizer; a model with more rows keeps them.
            new: ids with untrained rows.

        Raises:
            PlanError: the model does not support more rows.
        """
        ...

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """Write a model with its tokenizer in transformers' layout, tensor by tensor if possible. Capability `write`.

        Args:
            of: the loader of the written model, if it wraps this one; None: this one.

        Raises:
            OSError: a file cannot be written.
        """
        ...


class Family(Protocol):
    """Describes the models of one family."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts: ...
