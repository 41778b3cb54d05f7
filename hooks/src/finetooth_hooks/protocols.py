"""What builders return. An entry declares (`finetooth_hooks.Loss`), the protocol of the same name here is the thing
itself.

Engines and losses have modules of their own: `finetooth_hooks.engine`, `finetooth_hooks.losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from finetooth_hooks.checkpoints import Gate, Store
from finetooth_hooks.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.entries import ScalarHead
from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Conversation, Example, Image, Message, Parsed, ReadRow, Rendered, Row, TrainOn
from finetooth_hooks.plan import Decision, MemoryEstimate, Pick, Plan, TrainSettings
from finetooth_hooks.reports import DataReport, Evaluation, Outcome, Prepared, StepReport
from finetooth_hooks.run import Run
from finetooth_hooks.tally import Problems

# --- models -----------------------------------------------------------------------------------------------------------


class Tokenizer(Protocol):
    """Text to ids and back, for any library. `finetooth_hooks.tokenizers.FastTokenizer` wraps a transformers
    tokenizer."""

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
        """Write it so that transformers' AutoTokenizer reads back the same ids."""
        ...


class StretchTokenizer(Tokenizer, Protocol):
    """A tokenizer that encodes several texts at once, and tells where a part of each begins."""

    def encode_from(self, stretches: Sequence[tuple[str, int | None]]) -> list[tuple[list[int], int]]:
        """Ids of each text, none of them special, and the index of the first token that starts at or after a character.

        Args:
            stretches: texts and characters; None stands for the end.
        """
        ...


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
    """

    reference: str
    loader: str
    model_type: str
    config: Mapping[str, Any]
    parameters: int
    weight_bytes: int
    files: tuple[Path, ...] = ()
    revision: str = ""


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
    """A decoder of the usual kind, which a backend may compute with code of its own. Layer by layer

        h = h + output(attend(rotate(query(n)), rotate(key(n)), value(n)))    n = attention_norm(h), root-mean-square
        h = h + down(activation(gate(n)) * up(n))                             n = ffn_norm(h)

    with causal attention over everything before, grouped key-value heads, scores scaled by 1 / sqrt(head_dim), no
    dropout, and `final_norm` at the end. A backend makes sure by comparing it with the model itself.

    Attributes:
        eps: of the norms.
        embedding, rotary, final_norm: module paths in the body; `rotary` gives cosines and sines for positions.
        attention_norm, ffn_norm, query, key, value, output, gate, up, down: module paths in a layer.
        query_norm, key_norm: module paths of norms over each head before the rotation; empty where there are none.
        activation: `silu`, `gelu` or `gelu_tanh`.
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
    activation: str = "silu"


@dataclass(frozen=True)
class LowRank:
    """What an adapted linear module computes, if it is its base and a low-rank addition: base(x) + scale (x A^T) B^T.

    Attributes:
        base: the framework's linear module.
        a, b: (rank, inputs) and (outputs, rank); None while the adapter is switched off.
    """

    base: Any
    a: Any | None = None
    b: Any | None = None
    scale: float = 1.0


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
        attention: kinds of attention that its layers can be computed with, by transformers' names; empty: all.
        towers: module paths of what reads images or sound and hands it to the decoder, the modules between included.
        tower_parameters: how many parameters those have.
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
    attention: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    tower_parameters: int = 0


class Loader(Protocol):
    """Built from the recipe's `model` section (options: whatever the loader adds)."""

    def describe(self, reference: str) -> ModelInfo:
        """Config and sizes; reads no weights.

        Raises:
            RecipeError: nothing is there, it is not a model, or its package is missing.
        """
        ...

    def tokenizer(self, reference: str) -> Tokenizer: ...

    def load(self, reference: str, *, framework: str, precision: str, device: str) -> Any:
        """The framework's model with its weights: for `torch` a transformers model in eval mode.

        Args:
            precision: of the weights, `fp32`, `bf16`, `fp16`.
        """
        ...


class Family(Protocol):
    """What is particular to a family."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts: ...


class Renderer(Protocol):
    """Messages to tokens with loss weights, and back; built with the model's tokenizer (`context.tokenizer`).

    A renderer may also say `extension`, a bool: whether the prompt for turn k + 1 begins with the tokens of the
    conversation up to and with turn k, for every conversation. Then a rollout of several turns can keep its key-value
    cache, and one sequence can train all its turns. Without it the answer is no.
    """

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an assistant message."""
        ...

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the whole conversation; the trained messages' content and end-of-turn weigh 1, everything else 0.

        Raises:
            DataError: a role or shape the family cannot say.
        """
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens up to where the assistant begins to speak."""
        ...

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """Read an assistant message back from its tokens."""
        ...


@dataclass(frozen=True)
class ImagePlace:
    """How an image stands in text.

    Attributes:
        text: what takes the place of the chat template's placeholder, special tokens spelled.
        start, stop: half-open range of its characters that stand for the image; the rest is markup around it.
        image: as it was given, its `sha256` known.
        width, height: in pixels, upright, before the processor resizes it.
    """

    text: str
    start: int
    stop: int
    image: Image
    width: int
    height: int


class Processor(Protocol):
    """Images as one model was trained to see them; built for the recipe's model."""

    @property
    def placeholder(self) -> str:
        """What the model's chat template writes for an image, one special token."""
        ...

    @property
    def token_ids(self) -> frozenset[int]:
        """Ids of the tokens in whose place the model reads image features."""
        ...

    def place(self, image: Image) -> ImagePlace:
        """Open an image, make sure that it is whole, and say what it becomes among the tokens.

        Raises:
            DataError: it is missing, broken, no image, or too large; names the image.
        """
        ...

    def inputs(self, images: Sequence[bytes]) -> Mapping[str, Any]:
        """What the model's forward takes beside the tokens for images in this order, NumPy arrays by argument.

        Args:
            images: encoded, as `Image.read` gives them.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write its settings beside a model that goes with it."""
        ...


class Adapter(Protocol):
    """Decides which parameters of a model train.

    An adapter may also have `low_rank(module) -> LowRank | None`: what a module of the adapted model computes, if it is
    at this moment (dropout, switched off) nothing but its base and a low-rank addition; then a backend may compute it
    together with its neighbours. Without the method, or where it says None, the module is called as it is.

    And it may have `fold(model, folder, *, precision, device, pad_id) -> Any`: `model`, a base in fp32 as the loader
    gives it, with the artifact in `folder` folded in, nothing left of the adapter, in a precision and on a device. Then
    a run with the adapter can be the model of another. Of an artifact with a scalar head the result is a language model
    that carries the head as `score`; `pad_id` is that of the tokenizer.
    """

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        """How many will train, for the memory estimate; `parameters` is the size of the base."""
        ...

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        """The model to train: trained parameters require gradients, all others do not. New parameters are drawn from
        `generator`.

        Raises:
            RecipeError: a target matches nothing.
        """
        ...

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        """While entered, the model computes as the base does. Only with `can_disable`."""
        ...

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        """Write the artifact: peft's layout for an adapter, transformers' for whole weights.

        Args:
            model: what `apply` made; of an engine with a scalar head, a classifier of the same modules with the head
                beside them (`finetooth_hooks.classifiers`).
        """
        ...

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back from an artifact that `export` wrote, into a model that `apply` made.

        Args:
            model: as for `export`.

        Raises:
            UserError: the artifact is of another adapter or another shape; the message names what differs.
        """
        ...


class Optimizer(Protocol):
    """Makes the framework's optimizer."""

    @property
    def learning_rate(self) -> float:
        """The base rate, which the schedule's factor multiplies."""
        ...

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        """The framework's optimizer over the parameters that train (for torch: a torch.optim.Optimizer)."""
        ...


class Schedule(Protocol):
    """Learning-rate factor by step."""

    def factor(self, step: int, total: int | None) -> float:
        """Factor for the update number `step` (0-based) of `total`.

        Raises:
            RecipeError: it needs a total and there is none.
        """
        ...

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Called after every step with the latest metrics (`loss`, `eval/loss`, ...)."""
        ...

    def state(self) -> Mapping[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


# --- data -------------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Rows, in the same order every time; as far as possible one by one, without holding all of them."""

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            DataError: a file is missing, empty or broken; names file and line. It may come after the last good row.
        """
        ...


@dataclass(frozen=True)
class Portion:
    """Rows of a source, not yet read.

    Attributes:
        content: bytes that hold some rows.
        place: what the source needs to know to name them, such as the number of the first line.
    """

    content: bytes
    place: tuple[int, ...] = ()


@runtime_checkable
class PortionedSource(Source, Protocol):
    """A source whose rows lie in bytes that are quickly cut into portions, so that several processes can read them."""

    def portions(self) -> Iterator[Portion]:
        """All rows, in order, a few hundred kilobytes at a time.

        Raises:
            DataError: the source is missing, empty, or of another kind.
        """
        ...

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        """The rows of a portion, in order; an error for each that cannot be read."""
        ...

    def refusal(self, broken: Problems, good: int) -> DataError:
        """The error for a source with rows that cannot be read.

        Args:
            broken: errors of `read`.
            good: how many rows could be read.
        """
        ...


@runtime_checkable
class KnownSource(Source, Protocol):
    """A source that says what its rows are made of; only of such rows, and those of an `IdentifiedSource`, may a cache
    be kept.

    A source that has other sources read its rows also has `relies_on`, the full names of their entries: then their code
    and versions decide the rows too.
    """

    def files(self) -> tuple[Path, ...] | None:
        """Every file that is read. With its options and the versions of its packages they decide every row; None if
        they do not.

        Raises:
            DataError: they are not there.
        """
        ...


@runtime_checkable
class IdentifiedSource(Source, Protocol):
    """A source whose rows are kept by somebody who says which they are: by a commit, by a fingerprint. Such rows may be
    cached too; asked only if there are no files (`KnownSource`) to go by."""

    def identity(self) -> str | None:
        """A text that is another one whenever the rows are others; None if there is none.

        Raises:
            DataError: the rows are not there.
        """
        ...


class Format(Protocol):
    """Turns a row into an example, or into several."""

    def detect(self, values: Mapping[str, Any]) -> str | None:
        """Why this row is of the format, for the plan (`has a column 'messages'`), or None if it is not."""
        ...

    def read(self, row: Row) -> ReadRow:
        """
        Which columns it looks up in `row.values` is watched, and columns that are never looked up are told to the user.

        Returns:
            An example; or several of them, which are called `ROW#1`, `ROW#2`, ... in this order. A `LeftOut` in place
            of one is counted by its reason: for rows that are what they should be and yet teach nothing.

        Raises:
            DataError: the row is not of the format; names row and field. Such a row ends a run before it begins.
        """
        ...


@dataclass(frozen=True)
class Examples:
    """The examples of one split, read and checked.

    Attributes:
        split: `train` or `eval`.
        rows: examples with the id of their row, in the source's order. Of large data they are read anew each time
            they are gone through.
        format: which format reads them, and why.
        source: which source yielded them.
    """

    split: str
    rows: Sequence[tuple[str, Example]]
    format: str = ""
    source: str = ""


# --- training ---------------------------------------------------------------------------------------------------------


class Method(Protocol):
    """Turns examples into data and drives the engine: a generator of steps.

    What outlives a `yield` (cursor, replay buffer, controllers) is in `state()`.
    """

    def prepare(self) -> Prepared:
        """Read and tokenise the data. Called once, before the engine is built, so that bad data fail early."""
        ...

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step per item; the run loop may log, evaluate, save or stop between two."""
        ...

    def state(self) -> Mapping[str, Any]:
        """JSON-able. Asked for after every step, so that the state before a failed one is known: keep it cheap.

        After a step that failed it is behind the data of that step: a run that passes them over restores it, and a new
        `steps` goes on with the next ones. So take the cursor on before the engine is called.
        """
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class KnownData(Protocol):
    """A method or an evaluator whose data are known once they are prepared, and stay the same."""

    @property
    def data(self) -> Sequence[Datum]:
        """What it trains or scores, in the order of the rows; empty before `prepare`. Lengths are asked for with
        `token_rows.positions_of`."""
        ...


@runtime_checkable
class ReadsBeginning(Protocol):
    """A method or an evaluator that takes something from the weights as they are before the first step of a run. What
    it takes is in no checkpoint, so a run that goes on lets it look again."""

    def read_beginning(self, engine: Engine) -> None:
        """Called when a run goes on, after `prepare` and before the saved state is loaded; not in a run that begins,
        whose first step or evaluation finds the weights as they are.

        Raises:
            FinetoothError: it could not be had.
        """
        ...


@runtime_checkable
class BringsRoles(Protocol):
    """A method that says by its options which models it needs beside the policy."""

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """What the engine shall hold for each role; None: nothing, the method gives the role's numbers with the data.
        A role that is not named is the policy without its adapter."""
        ...


class Reward(Protocol):
    """Scores completions: one float a completion, or None to leave it out."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """
        Args:
            columns: further columns by name, as long as `completions`; `answer` holds the expected text where there
                is one.
        """
        ...


class Evaluator(Protocol):
    """Measures the engine on held-out examples."""

    def prepare(self) -> DataReport | None:
        """Read the held-out examples once, before training; None if it reads none."""
        ...

    def evaluate(self, engine: Engine, step: int) -> Evaluation: ...


class Tracker(Protocol):
    """Receives the steps and evaluations of a run; must be cheap."""

    def start(self, run: Run) -> None: ...
    def step(self, run: Run, report: StepReport) -> None: ...
    def evaluated(self, run: Run, evaluation: Evaluation) -> None: ...
    def end(self, run: Run, outcome: Outcome) -> None: ...


# --- backends and hardware --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HardwareFacts:
    """One device.

    Attributes:
        name: full name of the hardware's entry.
        device: what the framework calls it, `cpu`, `cuda:0`.
        label: what a person calls it, `2 CPU cores (avx512_bf16)`.
        memory: total bytes, not what happens to be free.
        precisions: what it computes natively, best first.
        slow_precisions: what it can compute, but slower than fp32.
        attention: implementations that work on it, best first.
        peak_flops: dense FLOP/s by precision as its maker states them; empty where they are not known, and are
            measured if asked for.
    """

    name: str
    device: str
    label: str
    memory: int
    precisions: tuple[str, ...]
    slow_precisions: tuple[str, ...] = ()
    attention: tuple[str, ...] = ("sdpa",)
    peak_flops: Mapping[str, float] = field(default_factory=dict)


class Hardware(Protocol):
    """A kind of device."""

    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""
        ...

    def facts(self) -> HardwareFacts: ...


@dataclass(frozen=True)
class PlanRequest:
    """What a backend needs to decide its settings.

    Attributes:
        train: the `train` section; None fields are `auto`.
        longest: positions of the longest datum; `train.max_length` when data are not read yet.
        longest_id: the row of that datum; empty if it is not known.
        mean_length: positions of the average datum; 0 when data are not read yet.
        length_deviation: standard deviation of that.
        lengths: positions of the data at equal shares, shortest first; empty if they are not known.
        segmented: data hold several segments (`Datum.parents`), which must be kept apart.
        needs: engine capabilities that the method and the evaluators rely on.
        head: the scalar head that the method asks for.
        role_parameters: parameters of frozen models held beside the policy.
        trained_parameters: how many parameters train, those of the head included.
        optimizer_bytes: optimizer state per trained parameter.
        optimizer: full name, for messages.
        accumulation: the optimizer can accumulate gradients.
        checkpointing: the optimizer works with gradient checkpointing.
    """

    model: ModelInfo
    facts: ModelFacts
    hardware: HardwareFacts
    train: TrainSettings
    trained_parameters: int
    optimizer_bytes: float
    optimizer: str
    accumulation: bool
    checkpointing: bool
    longest: int
    mean_length: float
    longest_id: str = ""
    length_deviation: float = 0.0
    lengths: tuple[int, ...] = ()
    segmented: bool = False
    needs: frozenset[str] = frozenset()
    head: ScalarHead | None = None
    role_parameters: int = 0


@dataclass(frozen=True)
class StepCost:
    """What steps take, reckoned before any is done.

    Attributes:
        flops: for steps, each the positions of its data, and the share of positions that train: the floating-point
            operations of all of them.
        peak_flops: FLOP/s that the device does at most in the planned precision: as its maker states them, else
            measured, in 0.2 s at most.
    """

    flops: Callable[[Sequence[Sequence[int]], float], float]
    peak_flops: Callable[[], float]


@dataclass(frozen=True)
class BackendPlan:
    """What a backend decided: settings without `None`, reasons, and the memory it will take.

    Attributes:
        cost: what steps take; where the backend cannot say, the reason why, as the end of a sentence.
        padding: for steps, each the positions of its data, the share of computed positions that will be padding; None
            if the backend does not know.
    """

    train: TrainSettings
    decisions: tuple[Decision, ...]
    memory: MemoryEstimate
    padding: Callable[[Sequence[Sequence[int]]], float] | None = None
    cost: StepCost | str = "the backend does not say what steps take"


@dataclass(frozen=True)
class RoleRequest:
    """A frozen model that the engine shall hold for a role.

    Attributes:
        model, facts, loader: of another model than the policy's; None: a copy of the policy.
    """

    model: ModelInfo | None = None
    facts: ModelFacts | None = None
    loader: Loader | None = None


@dataclass(frozen=True)
class EngineRequest:
    """The parts an engine is made of.

    Attributes:
        stop_ids: token ids that end an answer, from the renderer.
        processor: gives what turns images into inputs, built when the first image comes; None: there is none.
        generator_seed: key for the engine's own random streams (dropout, sampling).
        adapter_generator: draws the adapter's new parameters.
        roles: frozen models beside the policy, by role; see the capability `roles`.
        head: a scalar head to build; one that the model brings is gone on with, else it is new.
        head_generator: draws a new head's weights.
    """

    plan: Plan
    model: ModelInfo
    facts: ModelFacts
    hardware: HardwareFacts
    loader: Loader
    adapter: Adapter
    adapter_can_disable: bool
    optimizer: Optimizer
    schedule: Schedule
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    processor: Callable[[], Processor] | None = None
    generator_seed: int = 0
    adapter_generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    roles: Mapping[str, RoleRequest] = field(default_factory=dict)
    head: ScalarHead | None = None
    head_generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


class Backend(Protocol):
    """Builds engines."""

    def plan(self, request: PlanRequest) -> BackendPlan:
        """Decide precision, micro-batch and checkpointing; imports the framework only if it must.

        Raises:
            PlanError: a combination cannot work; names both settings.
        """
        ...

    def engine(self, request: EngineRequest) -> Engine:
        """Load the weights and build the engine."""
        ...


__all__ = [
    "Adapter",
    "Backend",
    "BackendPlan",
    "BringsRoles",
    "Engine",
    "EngineRequest",
    "Evaluator",
    "Examples",
    "Family",
    "Format",
    "Gate",
    "Hardware",
    "HardwareFacts",
    "Head",
    "IdentifiedSource",
    "ImagePlace",
    "KnownData",
    "ReadsBeginning",
    "KnownSource",
    "Loader",
    "Method",
    "ModelFacts",
    "ModelInfo",
    "Optimizer",
    "PlanRequest",
    "Portion",
    "PortionedSource",
    "Processor",
    "Renderer",
    "Reward",
    "RoleRequest",
    "Schedule",
    "Source",
    "StepCost",
    "Store",
    "StretchTokenizer",
    "Tokenizer",
    "Tracker",
]
