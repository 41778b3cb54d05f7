"""What builders return. An entry declares (`finetooth_hooks.Loss`), the protocol of the same name here is the thing
itself.

Engines and losses have modules of their own: `finetooth_hooks.engine`, `finetooth_hooks.losses`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetooth_hooks.engine import Engine
from finetooth_hooks.examples import Conversation, Example, Message, Parsed, Rendered, Row, TrainOn
from finetooth_hooks.plan import Decision, MemoryEstimate, Pick, Plan, TrainSettings
from finetooth_hooks.reports import DataReport, Evaluation, Outcome, Prepared, StepReport
from finetooth_hooks.run import Run

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
class ModelFacts:
    """What a family says of one model.

    Attributes:
        hidden_size, layers, heads, kv_heads, head_dim, ffn_size, vocab_size: sizes.
        max_positions: longest sequence it was made for, in tokens.
        layer_path: module path of the list of decoder layers, `model.layers`.
        body: module path of the model without head, `model`.
        head: how hidden states become logits.
        attention_targets: names of linear modules inside attention, for adapters.
        linear_targets: names of all linear modules of a decoder layer.
        renderer: the renderer pick that speaks its chat markup.
        tied: head and embedding share their weight.
        first_loss: (low, high) of a healthy first training loss, in nats per token.
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
    """Messages to tokens with loss weights, and back; built with the model's tokenizer (`context.tokenizer`)."""

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


class Adapter(Protocol):
    """Decides which parameters of a model train."""

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
        """Write the artifact: peft's layout for an adapter, transformers' for whole weights."""
        ...

    def restore(self, model: Any, folder: Path) -> None:
        """Take the trained weights back from an artifact that `export` wrote, into a model that `apply` made.

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
    """Rows, in the same order every time."""

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            DataError: a file is missing, empty or broken; names file and line.
        """
        ...


class Format(Protocol):
    """Turns a row into an example."""

    def detect(self, values: Mapping[str, Any]) -> str | None:
        """Why this row is of the format, for the plan (`has a column 'messages'`), or None if it is not."""
        ...

    def read(self, row: Row) -> Example:
        """
        Raises:
            DataError: the row is not of the format; names row and field.
        """
        ...


@dataclass(frozen=True)
class Examples:
    """The examples of one split, read and checked.

    Attributes:
        split: `train` or `eval`.
        rows: examples with the id of their row, in the source's order.
        format: which format reads them, and why.
        source: which source yielded them.
    """

    split: str
    rows: tuple[tuple[str, Example], ...]
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
        """JSON-able."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


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
    """

    name: str
    device: str
    label: str
    memory: int
    precisions: tuple[str, ...]
    slow_precisions: tuple[str, ...] = ()
    attention: tuple[str, ...] = ("sdpa",)


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
        mean_length: positions of the average datum.
        trained_parameters: how many parameters train.
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


@dataclass(frozen=True)
class BackendPlan:
    """What a backend decided: settings without `None`, reasons, and the memory it will take."""

    train: TrainSettings
    decisions: tuple[Decision, ...]
    memory: MemoryEstimate


@dataclass(frozen=True)
class EngineRequest:
    """The parts an engine is made of.

    Attributes:
        stop_ids: token ids that end an answer, from the renderer.
        generator_seed: key for the engine's own random streams (dropout, sampling).
        adapter_generator: draws the adapter's new parameters.
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
    generator_seed: int = 0
    adapter_generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


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
    "Engine",
    "EngineRequest",
    "Evaluator",
    "Examples",
    "Family",
    "Format",
    "Hardware",
    "HardwareFacts",
    "Head",
    "Loader",
    "Method",
    "ModelFacts",
    "ModelInfo",
    "Optimizer",
    "PlanRequest",
    "Renderer",
    "Reward",
    "Schedule",
    "Source",
    "Tokenizer",
    "Tracker",
]
