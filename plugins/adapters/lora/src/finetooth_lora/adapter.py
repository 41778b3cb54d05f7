"""The LoRA adapter: its options, with peft's layers behind it. peft is imported only with a model: that takes seconds,
and a check of a recipe does not need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from finetooth_hooks import Context, RecipeError
from finetooth_hooks.protocols import Addition, LowRank, ModelFacts, ModelInfo, ModelTensors
from finetooth_modelfiles import low_rank
from finetooth_peftfiles import resuming
from finetooth_peftfiles.foldable import FoldableAdapter
from pydantic import Field, model_validator

from finetooth_lora.sizes import EVA_ROOM, Experts, added_parameters, experts_of, numbers_for_backward, summed_bytes

CAPABILITIES = frozenset({"disable", "fold", "fold_tensors", "additions"})


class LowRankOptions(low_rank.LowRankOptions):
    """Options of all low-rank adapters."""

    loraplus_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of B, as a multiple of A's, which is the optimizer's (LoRA+, Hayou et al., 2024, arXiv:2402.12354).
    The paper uses 16, with a lower learning rate than usual."""


class LoraOptions(LowRankOptions):
    """Options of `lora`."""

    target_parameters: list[str] = Field(default_factory=list)
    """Weights that hold the matrices of many experts in one tensor (`mlp.experts.gate_up_proj`), by names that end
    their paths. Each expert gets its own low-rank update. `targets: []` leaves linear modules out. Dropout does not
    apply to these weights."""
    init: Literal["pissa", "olora", "loftq", "eva"] | None = None
    """Initial values of A and B. Left out: A random, B zero. `pissa` takes the largest singular vectors of the weight
    (arXiv:2404.02948) and `olora` the beginning of its QR decomposition (arXiv:2406.01775); both subtract them from the
    weight, so that the model's outputs do not change, and double the rank in the artifact and in the computation.
    `loftq` approximates the rounding error of a quantised base (arXiv:2310.08659, one step), so that the model begins
    closer to the original base. `eva` sets A to the directions in which a module's inputs vary most over the first
    `init_rows` (arXiv:2410.07170), and B to zero."""
    init_rows: int | None = Field(default=None, ge=1)
    """For `eva`: number of rows of data.train to read before training, the first ones. Default: 64."""
    svd_iterations: int | None = Field(default=None, ge=1, le=128)
    """For `pissa` and `loftq`: find the singular vectors by this many power iterations (16 are usual). This takes
    seconds, a full decomposition minutes."""
    train_new_tokens: bool = True
    """Whether the embeddings of tokens from `model.added_tokens` train too; only their rows do."""
    train_tokens: list[str] = Field(default_factory=list)
    """Tokens, by their spelling, whose rows in embedding and head train too."""
    dora: bool = False
    """Train the norm of each output's weights separately from their direction (Liu et al., 2024, arXiv:2402.09353)."""
    resume_from: str | None = None
    """A run with a LoRA, or an adapter's folder: training begins with that adapter. Base, rank and targets must be the
    same."""

    @model_validator(mode="after")
    def _go_together(self) -> LoraOptions:
        if not self.targets and not self.target_parameters:
            raise ValueError("targets and target_parameters are both empty: nothing would train")
        if self.dora and self.target_parameters:
            raise ValueError(
                "dora cannot train the magnitudes of experts' weights: leave out dora or target_parameters"
            )
        if self.init and self.dora:
            raise ValueError("init and dora exclude each other: leave one of them out")
        if self.init and self.resume_from:
            raise ValueError("init begins a new adapter and resume_from continues one: leave one of them out")
        if self.svd_iterations is not None and self.init not in ("pissa", "loftq"):
            raise ValueError("svd_iterations is for init: pissa or loftq")
        if self.init_rows is not None and self.init != "eva":
            raise ValueError("init_rows is for init: eva")
        if self.init in ("loftq", "eva") and not self.targets:
            raise ValueError(f"init: {self.init} is for linear modules, and targets is empty")
        return self


@dataclass(frozen=True)
class LoraAdapter(FoldableAdapter):
    """`protocols.Adapter` over peft.

    `apply` returns the given model with its chosen modules replaced by peft's layers: paths such as `model.layers.0`
    stay valid. The matrices are float32 for any precision of the base.
    """

    options: LoraOptions
    tokens: tuple[int, ...] = ()
    """Ids of `train_tokens`."""
    experts: Experts = field(default_factory=Experts)
    """Of the model."""
    begins: Path | None = None
    """The artifact of the adapter to continue."""
    original: Callable[[str], Any] | None = None
    """With `init: loftq`, the weight of a module before it was quantised, by its path."""
    rows: Callable[[], list[list[int]]] | None = None
    """With `init: eva`, rows of token ids."""

    @property
    def capabilities(self) -> frozenset[str]:
        """See `protocols.Adapter`."""
        loftq, pairs = self.options.init == "loftq", self.options.init in ("pissa", "olora")
        apart = loftq or self.begins is not None
        applies = {"makes_up": loftq, "draws": self.options.dropout > 0, "begins_apart": apart}
        applies["low_rank"] = not (self.options.dora or (self.options.dropout and pairs))
        return CAPABILITIES | {word for word, is_so in applies.items() if is_so}

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """Number of parameters of the addition; exact for layers built like Llama's."""
        added = added_parameters(self.options.targets, facts, self.options.rank, dora=self.options.dora)
        added += self.experts.added(self.options.target_parameters, facts, self.options.rank)
        return added + len(self._rows(facts)) * (1 if facts.tied else 2) * facts.hidden_size

    def held_bytes(self, facts: ModelFacts, precision: str) -> int:
        """With `init: pissa` or `olora`, the frozen pairs."""
        if self.options.init not in ("pissa", "olora"):
            return 0
        added = added_parameters(self.options.targets, facts, self.options.rank, dora=False)
        return added * (4 if precision == "fp32" else 2)

    def token_bytes(self, facts: ModelFacts, precision: str) -> float:
        """Without what a backend's own additions to linear modules keep; see `sizes.numbers_for_backward`."""
        numbers = self.experts.read(self.options.target_parameters, facts)
        if (self.options.dora or self.options.dropout) and self.options.targets:
            numbers += numbers_for_backward(
                self.options.targets, facts, self.options.rank, dora=self.options.dora, dropout=self.options.dropout
            )
        return numbers * (4 if precision == "fp32" else 2)

    def beginning_bytes(self, facts: ModelFacts) -> int:
        """With `init: eva`, bytes of the sums."""
        if self.options.init != "eva":
            return 0
        return summed_bytes(self.options.targets, facts, EVA_ROOM)

    def rate_shares(self, names: Sequence[str]) -> Mapping[str, float]:
        """See `loraplus_ratio`."""
        return b_shares(self.options.loraplus_ratio, names)

    def _rows(self, facts: ModelFacts) -> tuple[int, ...]:
        """Tokens with trained rows in embedding and head."""
        new = facts.new_tokens if self.options.train_new_tokens else ()
        return tuple(sorted({*new, *self.tokens}))

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """See `layers.put_in`.

        Raises:
            RecipeError: a target matches nothing, or peft refuses it.
        """
        from finetooth_lora.layers import put_in

        adapted = put_in(self.options, model, facts, generator, rows=self._rows(facts))
        if self.original is not None or self.rows is not None:
            self._begin(adapted, generator)
        if self.begins is not None:
            self.restore(adapted, self.begins)
        return adapted

    def _begin(self, model: Any, generator: np.random.Generator) -> None:
        """Set the initial values for `init: loftq` and `eva`.

        Raises:
            RecipeError: the base is not quantised (`loftq`), or the data have no rows (`eva`).
        """
        from finetooth_lora.layers import added_to_linear

        layers = added_to_linear(model)
        if self.original is not None:
            from finetooth_lora.beginnings import make_up

            for path, layer in layers.items():
                make_up(path, layer, self.original(path), self.options.svd_iterations, generator)
        if self.rows is not None:
            from finetooth_lora.inputs import begin_with_inputs

            begin_with_inputs(model, layers, self.rows())

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        """Inside the `with` block, the model computes as its base."""
        from finetooth_peftfiles.layers import switched_off

        with switched_off(model):
            yield

    def low_rank(self, module: Any) -> LowRank | None:
        """See `layers.low_rank`."""
        from finetooth_lora.layers import low_rank

        return low_rank(self.options, module)

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json`; the base has the recipe's name."""
        from finetooth_lora.artifact import write

        write(model, folder, info)

    def additions(self, folder: Path) -> Mapping[str, Addition] | None:
        """See `protocols.Adapter`; None with DoRA, and if embeddings, tokens or a head have separate weights.

        Raises:
            UserError: the artifact does not hold a readable adapter.
        """
        from finetooth_lora.artifact import additions

        return additions(folder)

    def fold_tensors(self, tensors: ModelTensors, folder: Path) -> ModelTensors | None:
        """See `protocols.Adapter`.

        Raises:
            UserError: the artifact was made for another model, or its file is damaged.
        """
        from finetooth_lora.shards import fold_tensors

        return fold_tensors(tensors, folder)

    def restore(self, model: Any, folder: Path) -> None:
        """Restore the addition from an artifact.

        Raises:
            UserError: the artifact has no adapter, or one of another rank, scale or choice of modules.
        """
        from finetooth_lora.artifact import take_back

        take_back(model, folder)


def build(options: LoraOptions, context: Context) -> LoraAdapter:
    """Builder of the adapter `lora`."""
    new = len(context.facts.new_tokens)
    if new and not options.train_new_tokens:
        tokens = "1 new token" if new == 1 else f"{new} new tokens"
        context.note(
            f"adapter.train_new_tokens: false keeps the initial embeddings of {tokens}, except for what "
            "adapter.targets may add to all embeddings"
        )
    if options.target_parameters and options.dropout:
        context.note("adapter.dropout does not act on target_parameters: an expert's addition has no input of its own")
    made = LoraAdapter(
        options, _tokens(options, context), experts_of(context.model.config),
        original=_originals(context) if options.init == "loftq" else None,
        rows=partial(_rows_of, options, context) if options.init == "eva" else None,
    )  # fmt: skip
    if options.resume_from is None:
        return made
    settings = {
        "r": options.rank,
        "lora_alpha": options.resolved_alpha,
        "use_rslora": options.rslora,
        "use_dora": options.dora,
    }
    targets = options.targets if not options.target_parameters else None
    return replace(made, begins=resuming.begin(options.resume_from, context, "LORA", settings, targets))


def _originals(context: Context) -> Callable[[str], Any]:
    """See `originals.originals`; the precision is known only when the model is built."""

    def read(path: str) -> Any:
        from finetooth_toolbox.precision_choice import stored_precision

        from finetooth_lora.originals import originals

        if not readers:
            precision = context.train.precision
            readers.append(originals(context.model, context.loader, precision and stored_precision(precision)))
        return readers[0](path)

    readers: list[Callable[[str], Any]] = []
    return read


def _rows_of(options: LoraOptions, context: Context) -> list[list[int]]:
    """Rows for `init: eva`.

    Raises:
        RecipeError: the data have no rows.
    """
    from finetooth_rendering.calibration import calibration_rows

    return calibration_rows(context, options.init_rows or 64, "adapter.init", "eva", instead="leave adapter.init out")


def b_shares(ratio: float, names: Sequence[str]) -> Mapping[str, float]:
    """LoRA+: the factor of the learning rate of each B, by its name among the trained parameters."""
    sides = (".lora_B.", ".lora_embedding_B.")
    return {} if ratio == 1 else {name: ratio for name in names if any(side in name for side in sides)}


def _tokens(options: LoraOptions, context: Context) -> tuple[int, ...]:
    """Ids of `train_tokens`.

    Raises:
        RecipeError: a spelling is not a token of the model.
    """
    ids = []
    for token in options.train_tokens:
        id_ = context.tokenizer.token_id(token)
        if id_ is None:
            raise RecipeError(
                "adapter.train_tokens",
                f"{token!r} is not a token of {context.model.reference}",
                action="spell it as the tokenizer does, or add it with model.added_tokens",
            )
        ids.append(id_)
    return tuple(ids)
