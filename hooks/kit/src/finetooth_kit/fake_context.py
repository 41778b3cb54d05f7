"""A context for building one entry on its own: scratch folder, byte tokenizer, toy model, a few examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import numpy as np
from finetooth_hooks.bases import LoaderBase, RendererBase
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.context import Opened
from finetooth_hooks.data.examples import Conversation, Example, Message, Parsed, Rendered, TrainOn
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from finetooth_hooks.entries import Entry, Loss
from finetooth_hooks.errors import DataError, PluginError, RecipeError
from finetooth_hooks.plan import Pick, Plan, TrainSettings
from finetooth_hooks.protocols import Examples, Head, ModelFacts, ModelInfo, Processor, Renderer, Tokenizer
from finetooth_rows.preparing import first_examples, load_rendering, prepare_examples

from finetooth_kit.builders import build
from finetooth_kit.byte_tokenizer import ByteTokenizer
from finetooth_kit.fake_engine import FakeEngine
from finetooth_kit.losses import weighted_nll

TRAIN = TrainSettings(
    epochs=2,
    max_steps=None,
    batch_size=4,
    max_length=256,
    excess_length="drop",
    seed=0,
    shuffle=True,
    precision="fp32",
    micro_batch_tokens=512,
    gradient_checkpointing=False,
    max_grad_norm=1.0,
)

FACTS = ModelFacts(
    hidden_size=16,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=8,
    ffn_size=32,
    vocab_size=320,
    max_positions=512,
    layer_path="model.layers",
    body="model",
    head=Head(),
    attention_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    linear_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    renderer="plain",
    first_loss=(0.0, 20.0),
)
"""Of a llama with two tiny layers."""


def conversations(split: str, count: int = 10) -> Examples:
    """Small sums as conversations, other ones in each split."""
    first = 0 if split == "train" else 1000
    rows: list[tuple[str, Example]] = []
    for i in range(first, first + count):
        question, answer = f"What is {i} plus {i % 7}?", f"{i + i % 7}"
        rows.append((f"{split}:{i}", Conversation((Message("user", question), Message("assistant", answer)))))
    return Examples(split, tuple(rows), format="made by the kit", source="made by the kit")


class PlainRenderer(RendererBase):
    """`role: content` and an end token, over bytes; what a fake context gives when no renderer is under test."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        assert tokenizer.eos_id is not None
        self._end = tokenizer.eos_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self._end,)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        tokens: list[int] = []
        weights: list[float] = []
        spans: list[tuple[int, int]] = []
        last = max((i for i, m in enumerate(conversation.messages) if m.role == "assistant"), default=-1)
        for i, message in enumerate(conversation.messages):
            trained = train_on == "all" or (message.role == "assistant" and (train_on == "assistant" or i == last))
            trained = trained if message.train is None else message.train
            header = self._tokenizer.encode(f"{message.role}: ")
            content = [*self._tokenizer.encode(message.content), self._end]
            spans.append((len(tokens), len(tokens) + len(header) + len(content)))
            tokens += header + content
            weights += [0.0] * len(header) + [float(trained)] * len(content)
        return Rendered(tuple(tokens), tuple(weights), tuple(spans))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        rendered = self.render(Conversation(tuple(messages), tuple(tools)))
        return (*rendered.tokens, *self._tokenizer.encode("assistant: "))

    def parse(self, tokens: Sequence[int]) -> Parsed:
        ids = list(tokens)
        ended = self._end in ids
        content = ids[: ids.index(self._end)] if ended else ids
        return Parsed(Message("assistant", self._tokenizer.decode(content)), "stop" if ended else "length")


MODEL = ModelInfo(
    reference="toy",
    loader="under-test:toy",
    model_type="llama",
    config={"model_type": "llama", "vocab_size": FACTS.vocab_size, "hidden_size": FACTS.hidden_size},
    parameters=14_000,
    weight_bytes=56_000,
)


@dataclass(frozen=True)
class FakeLoader(LoaderBase):
    """Describe the toy; it has no weights to load."""

    bytes: Tokenizer

    def describe(self, reference: str) -> ModelInfo:
        return replace(MODEL, reference=reference)

    def tokenizer(self, reference: str) -> Tokenizer:
        return self.bytes

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Any = None, meta: bool = False
    ) -> Any:
        raise RecipeError("model", f"{reference!r} has no weights: this is the conformance kit's stand-in")


@dataclass(frozen=True)
class FakeRegistered:
    """An entry with an invented source."""

    entry: Entry
    distribution: str = "under-test"
    version: str = "0"
    file: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.distribution}:{self.entry.name}"


class FakeCatalog:
    """Entries by kind and name, without a plugin manager."""

    def __init__(self, entries: Iterable[Entry], installed: bool = False) -> None:
        self._registered = [FakeRegistered(entry) for entry in entries]
        if installed:
            self._registered += _installed_entries()

    def get(self, kind: str, name: str, *, setting: str = "", framework: str = "") -> FakeRegistered:
        named = [r for r in self._registered if r.entry.kind == kind and name in (r.entry.name, r.full_name)]
        wanted = framework or "torch"  # which the kit tries entries with
        speaking = [r for r in named if wanted in getattr(r.entry, "frameworks", (wanted,))]
        if named:
            return (speaking or named)[0]
        raise PluginError(
            "",
            f"{setting or kind}: no {kind} {name!r} in this check",
            action="let the kit see installed plugins with installed=True",
        )

    def all(self, kind: str) -> tuple[FakeRegistered, ...]:
        return tuple(registered for registered in self._registered if registered.entry.kind == kind)

    def find(self, text: str) -> tuple[FakeRegistered, ...]:
        named = tuple(r for r in self._registered if text in (r.entry.name, r.full_name))
        if not named:
            raise PluginError("", f"no entry {text!r} in this check", action="name one that is there")
        return named

    def default(self, kind: str, *, setting: str = "", framework: str = "") -> FakeRegistered:
        for registered in self.all(kind):
            if registered.entry.default:
                return registered
        raise PluginError("", f"{setting or kind}: no {kind} is the default", action="name one")


@cache
def _installed_entries() -> tuple[FakeRegistered, ...]:
    from finetooth_kit.collection import entries_of

    registered: list[FakeRegistered] = []
    for point in sorted(entry_points(group="finetooth"), key=lambda point: point.value):
        distribution = point.dist
        name, version = (distribution.name, distribution.version) if distribution else (point.name, "0")
        # another broken plugin is not the fault of the one under test
        with suppress(Exception):
            registered += [FakeRegistered(entry, name, version) for entry in entries_of(point.value)]
    return tuple(registered)


@dataclass(frozen=True)
class FakeOpened:
    """A model ready for use, as `Context.open` gives it."""

    engine: FakeEngine
    context: Any
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    artifact: Path | None = None


@dataclass
class FakeContext:
    """Implements `finetooth_hooks.Context` for tests.

    Args:
        folder: scratch, stands for the run folder.
        entries: what `build` may pick.
        installed: let it pick from installed plugins too.
        seed: of the generators.

    Attributes:
        notes: what builders told the user.
        held: files that they use.
        awaited: metrics that they wait for, by setting.
    """

    folder: Path
    entries: tuple[Entry, ...] = ()
    installed: bool = False
    seed: int = 0
    train: TrainSettings = TRAIN
    markup: Literal["plain", "special"] = "plain"
    plan: Plan | None = None
    facts: ModelFacts = FACTS
    model: ModelInfo = MODEL
    tokenizer: Tokenizer = field(default_factory=ByteTokenizer)
    given: Mapping[str, Examples] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    held: list[Path] = field(default_factory=list)
    awaited: dict[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: Mapping[str, Opened] = field(default_factory=dict)
    _topics: set[str] = field(default_factory=set)

    @classmethod
    def over(cls, folder: Path, entries: tuple[Entry, ...], *examples: Example, split: str = "train") -> FakeContext:
        """One whose recipe gives these examples."""
        rows = tuple((f"rows.jsonl:{i}", example) for i, example in enumerate(examples, start=1))
        return cls(folder, entries=entries, given={split: Examples(split, rows)})

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def catalog(self) -> FakeCatalog:
        return FakeCatalog(self.entries, self.installed)

    @property
    def loader(self) -> FakeLoader:
        return FakeLoader(self.tokenizer)

    @property
    def processor(self) -> Processor:
        raise RecipeError("model", "the kit's model takes no images or sounds", action="give a processor of your own")

    @property
    def renderer(self) -> Renderer:
        return PlainRenderer(self.tokenizer)

    def build(self, kind: str, pick: Pick, *, setting: str = "") -> Any:
        name, options = _split(pick)
        return build(self.catalog.get(kind, name, setting=setting).entry, options, self)

    def loss(self, pick: Pick, *, setting: str = "") -> LossSpec:
        """A loss of the plugin under test; for a name nobody offers, the kit's own cross entropy takes its place."""
        name, options = _split(pick)
        try:
            registered = self.catalog.get("loss", name, setting=setting)
        except PluginError:
            return LossSpec(f"stand-in:{name}", weighted_nll)
        entry = registered.entry
        assert isinstance(entry, Loss)
        fn = build(entry, options, self)
        return LossSpec(registered.full_name, fn, frozenset(entry.needs), entry.together, entry.proportional_to)

    def examples(self, split: str, *, first: int | None = None) -> Examples:
        return first_examples(self.given[split] if split in self.given else conversations(split), first)

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None
    ) -> Preparation:
        return prepare_examples(self.examples(split, first=first), load_rendering(rendering, self), limit)

    def stream(self, split: str, rendering: Rendering, *, skip: int = 0) -> Iterator[tuple[str, Rendered | DataError]]:
        render = load_rendering(rendering, self)
        for id_, example in self.examples(split).rows[skip:]:
            try:
                yield id_, render(example)
            except DataError as error:
                yield id_, DataError(id_, error.problem, action=error.action)

    def open(self, reference: str, changes: Mapping[str, Any] | None = None) -> Opened:
        """One of `models`, or for any other reference the fake engine, as a reward model."""
        if reference in self.models:
            return self.models[reference]
        config = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
        model = replace(self.model, reference=reference, config={**self.model.config, **config})
        return FakeOpened(FakeEngine(self.tokenizer, self.renderer.stop_ids), replace(self, model=model))

    def generator(self, *keys: str | int) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.seed, *keys)).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))

    def hold(self, path: Path) -> None:
        self.held.append(path)

    def wait_for(self, metric: str, *, setting: str) -> None:
        self.awaited[setting] = metric

    def note(self, text: str, *, topic: str = "") -> None:
        if not topic or topic not in self._topics:
            self._topics.add(topic)
            self.notes.append(text)


def _split(pick: Pick) -> tuple[str, dict[str, Any]]:
    if isinstance(pick, str):
        return pick, {}
    options = dict(pick)
    return str(options.pop("name")), options
