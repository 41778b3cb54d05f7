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
    """Text to ids and back, for any library. `finetooth_toolbox.text.tokenizers.FastTokenizer` wraps a transformers
    tokenizer; others derive from `finetooth_hooks.TokenizerBase`, where what has a capability of its own refuses."""

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
        """Ids of `text`, nothing added. With `special`, text that spells a special token becomes that token; without,
        it stays plain text."""
        ...

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their half-open character ranges in `text`."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str: ...

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling, None if there is none."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer so that transformers' AutoTokenizer gives the same ids."""
        ...

    def encode_from(self, stretches: Sequence[tuple[str, int | None]]) -> list[tuple[list[int], int]]:
        """Ids of each text, none of them special, and the index of the first token that starts at or after a character.
        Capability `stretches`.

        Args:
            stretches: texts and characters; None stands for the end.
        """
        ...

    def changed(self, changes: TokenChanges) -> Tokenizer:
        """A copy with other tokens. Capability `changes`.

        Args:
            changes: which tokens.

        Raises:
            RecipeError: a token that should be new is there already, or one that should be there is not.
        """
        ...


@dataclass(frozen=True)
class NewToken:
    """A token that a tokenizer shall have.

    Attributes:
        text: its spelling.
        special: it is markup; text that spells one that is not becomes the token, and decoding shows it.
    """

    text: str
    special: bool = True


@dataclass(frozen=True)
class TokenChanges:
    """What a recipe changes about a tokenizer.

    Attributes:
        added: new tokens; their ids follow each other in this order.
        renamed: new spellings by the id of a token that nobody uses.
        roles: spellings by what they are for, `pad_token`, `eos_token`.
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
        model_type: of its config, picks the family.
        config: the config in transformers' shape.
        parameters: how many.
        weight_bytes: on disk.
        files: what it is made of.
        revision: hub revision or content hash, as far as known.
        contents: SHA-256 of every file that decides what the model computes and how it reads text (weights, config,
            tokenizer, template), by name; may be read when somebody first asks. Empty: it is not known.
        resident_bytes: what its weights take in memory once they are loaded, where that does not follow from their
            number and the precision of the run; None: it does.
        stored: how the file stores its linear weights, if not as plain numbers; what would change them is refused, also
            where nothing computes with them and they are plain numbers in memory. None: as plain numbers.
        stored_weights: how many weights stay so in memory, while all others are in the precision of the run; 0: it is
            not known, or none does.
        published: by what other tools load the model: its hub id, or an absolute folder in transformers' layout. An
            adapter's artifact names its base by this. Empty: by its reference.
        expert_weights: how many weights belong to experts that the model holds as one weight of three axes, which a
            quantizer stores in addition to the linear ones.
        loading_bytes: what loading takes of the host at its peak, where that is more than the weights once they are
            loaded: a model that is folded together is held in fp32 first. None: no more.
        by_module: plain numbers go to an accelerator one module after the other, so that the host never holds them all.
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
        """SHA-256 that stands for `contents`, hexadecimal; empty where they are not known.

        Files may be read for the first time: seconds for each gigabyte.
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
        softcap: None is off.
    """

    module: str = "lm_head"
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Block:
    """A decoder of the usual kind, which a backend may compute with code of its own. Layer by layer:

        h = h + output(attend(rotate(query(n)), rotate(key(n)), value(n)))    n = attention_norm(h), root-mean-square
        h = h + down(activation(gate(n)) * up(n))                             n = ffn_norm(h)

    with causal attention over everything before, grouped key-value heads, scores scaled by 1 / sqrt(head_dim) or by
    what the family says, no dropout, and `final_norm` at the end. What differs is said by the attributes, by
    `ModelFacts.attention` (a cap on scores, sinks) and by `ModelFacts.per_layer` (windows). A backend makes sure by
    comparing it with the model itself.

    Attributes:
        eps: of the norms.
        embedding, rotary, final_norm: module paths in the body; `rotary` gives cosines and sines for positions.
        attention_norm, ffn_norm, query, key, value, output, gate, up, down: module paths in a layer. Norms may be
            empty: there is none. Where `key` and `value` are empty, the module `query` gives all three, one behind the
            other; where `up` is empty, `gate` gives both; where `gate` is empty, `activation(up(n))` goes down.
        query_norm, key_norm: module paths of norms over each head before the rotation, or over all heads together,
            as their weights tell; empty where there are none.
        attention_after, ffn_after: module paths of norms on what attention and feed-forward add; empty: none.
        feed_forward: module path of a feed-forward block that is called as it is, in place of gate, up and down.
        parallel: the feed-forward block reads the residual stream that attention reads.
        norms: what norms compute: the root mean square; the same with 1 added to the weight; what their modules do.
        rotations: for each layer the kind of layer that `rotary` is given in addition to states and positions, an
            empty text where it is given none; None where the layer does not rotate. Empty: all layers rotate alike.
        interleaved: the rotation turns the pairs (2 i, 2 i + 1), not the pairs (i, i + R / 2).
        sinks: path of the parameter of a layer that holds the scores of `AttentionNeeds.sinks`.
        activation: `silu`, `gelu` or `gelu_tanh`.
        embedding_scale: factor on embeddings, where the residual stream begins.
        residual_scale: factor on what attention and feed-forward add to it.
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
    """What an adapted linear module computes, if it is its base and a low-rank addition: base(x) + scale (x A^T) B^T.

    With DoRA each output, without the base's bias, is multiplied by m and divided by the length of its row of
    W + scale B A.

    Attributes:
        base: the framework's linear module. Its weight is plain numbers, or stored by a quantizer in a module that
            computes the numbers when asked; a module that can only be called has no `LowRank`.
        a, b: (rank, inputs) and (outputs, rank); None while the adapter is switched off.
        magnitude: (outputs,), with DoRA the m, of an adapter that has a and b.
    """

    base: Any
    a: Any | None = None
    b: Any | None = None
    scale: float = 1.0
    magnitude: Any | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a family says of one model.

    Attributes:
        hidden_size, layers, heads, kv_heads, head_dim, ffn_size, vocab_size: sizes.
        max_positions: longest sequence it was made for, in tokens.
        layer_path: module path of the list of decoder layers, `model.layers`.
        body: module path of the model without head, `model`.
        head: how hidden states become logits.
        attention_targets: names of linear modules inside attention, for adapters.
        linear_targets: names of all linear modules of the decoder layers, but for those of `untargeted`.
        renderer: the renderer pick that speaks its chat markup.
        tied: head and embedding share their weight.
        first_loss: (low, high) of a healthy first training loss, in nats per token.
        block: how a decoder layer computes, where it is of the usual kind; None leaves it to the model's own code.
        new_tokens: ids of tokens that the recipe added, whose embeddings nobody has trained; the recipe's, not the
            family's to say.
        untargeted: names of linear modules that adapters leave alone unless a recipe names them: those that cannot be
            merged or served with one, such as the projections of linear attention.
        attention: what its layers need of attention in addition to products and a softmax.
        towers: module paths of what reads images or sound and hands it to the decoder, the modules between included.
        tower_parameters: how many parameters those have.
        modules: gives (inputs, outputs) of every linear module and embedding of the model by path; asked only where
            that does not follow from the other facts. The loader's to say (`Loader.modules`), not the family's.
        per_layer: facts of each layer, where layers differ or hold experts. Empty: all are alike, as above.
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
        model: the framework's model without memory (for `torch` a transformers model on the device `meta`); its linear
            modules are plain ones. By its `state_dict` the tensors are named.
        files: of the tensors that files hold, each end of a tied pair once, the name of the file. A writer of the
            model may write as many.
        read: one of them by name, in host memory: plain numbers, of shape as in the model. What a file or a quantizer
            stores in fewer bits is in fp32, all else in the precision that was asked for, or as the model keeps it.
    """

    model: Any
    files: Mapping[str, str]
    read: Callable[[str], Any]


class Loader(Protocol):
    """Built from the recipe's `model` section (options: whatever the loader adds). A loader derives from
    `finetooth_hooks.LoaderBase`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.LOADER`."""
        ...

    def describe(self, reference: str) -> ModelInfo:
        """Config and sizes; reads no weights.

        Raises:
            RecipeError: nothing is there, it is not a model, or its package is missing.
        """
        ...

    def sketch(self, reference: str) -> ModelInfo:
        """The same from the config alone, of a model whose weights may be elsewhere: to ask what would fit. A loader
        whose config and weights are one file says what `describe` says.

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
            quantizer: stores the linear weights, one after the other while the model is loaded; None: they stay in
                `precision`.
            meta: no weight is read and none takes memory, whatever the device; modules, names, shapes and types are
                those of the model with its weights, which the caller fills, a strategy rank by rank (`tensors`).
                Capability `meta`; without it nobody passes the argument.

        Raises:
            RecipeError: what is stored cannot be said without reading it, with `meta` and a quantizer for instance.
        """
        ...

    def tensors(
        self, reference: str, *, framework: str, precision: str, quantizer: Quantizer | None = None
    ) -> ModelTensors | None:
        """The numbers that `load` of the same arguments computes with, tensor by tensor. None where this model must be
        loaded whole: its files name tensors otherwise than its modules do, or its quantizer asks for all of it.
        Capability `tensors`.

        Raises:
            RecipeError: as `load`.
        """
        ...

    def modules(self, reference: str) -> Mapping[str, tuple[int, int]]:
        """(inputs, outputs) of every linear module and embedding by path, without reading a weight. Needs the
        capability `modules`."""
        ...

    def widen(self, model: Any, size: int, new: Sequence[int]) -> None:
        """Give a loaded model a row for every token, and the new ones the mean of those that were trained.
        Capability `widen`.

        Args:
            size: number of ids of the tokenizer; a model that has more rows keeps them.
            new: ids whose rows nobody has trained.

        Raises:
            PlanError: the model cannot be given more rows.
        """
        ...

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """Write a model with its tokenizer in transformers' layout, tensor by tensor where that is possible.
        Capability `write`.

        Args:
            of: the loader whose model is written, where that wraps this one; None: this one.

        Raises:
            OSError: a file cannot be written.
        """
        ...


class Family(Protocol):
    """What is particular to a family."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts: ...
