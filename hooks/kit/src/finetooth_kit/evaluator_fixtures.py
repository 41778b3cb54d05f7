"""Fixtures for tests of evaluators: a character tokenizer, a renderer in brackets, and a context over given examples.

A conftest names the one it wants:

    from finetooth_kit.evaluator_fixtures import make_context
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from finetooth_hooks.bases import TokenizerBase
from finetooth_hooks.data.examples import Conversation, Message, Parsed, PromptCompletion, Rendered, Task, Text
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.plan import TrainSettings
from finetooth_hooks.protocols import Examples
from finetooth_rows.preparing import first_examples, load_rendering, prepare_examples

BOS, EOS, OPEN, CLOSE = 0, 1, 2, 3
"""Special ids; a character's id is its code point + 4."""


@dataclass
class Tokenizer(TokenizerBase):
    adds_bos: bool = False
    bos_id: int = BOS
    eos_id: int = EOS

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        if special and "</s>" in text:
            first, _, rest = text.partition("</s>")
            return [*self.encode(first), self.eos_id, *self.encode(rest, special=True)]
        return [ord(c) + 4 for c in text]

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def token_id(self, spelling: str) -> int | None:
        return self.eos_id if spelling == "</s>" else None

    def decode(self, ids: Any, *, skip_special: bool = False) -> str:
        return "".join(chr(i - 4) for i in ids if i >= 4)


@dataclass
class Renderer:
    """`OPEN text CLOSE` a message; answers and their CLOSE weigh 1."""

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...] = (CLOSE,)

    def render(self, conversation: Conversation, *, train_on: str = "assistant") -> Rendered:
        tokens: list[int] = []
        weights: list[float] = []
        for message in conversation.messages:
            if message.role == "tool":
                raise DataError("messages", "this family cannot say role 'tool'", action="drop the row")
            weight = float(train_on == "all" or message.role == "assistant")
            body = self.tokenizer.encode(message.content)
            tokens += [OPEN, *body, CLOSE]
            weights += [0.0, *[weight] * len(body), weight]
        return Rendered(tuple(tokens), tuple(weights))

    def prompt(self, messages: Any, tools: Any = ()) -> tuple[int, ...]:
        return (*self.render(Conversation(tuple(messages))).tokens, OPEN)

    def parse(self, tokens: Any) -> Parsed:
        return Parsed(Message("assistant", self.tokenizer.decode(tokens)), "stop" if CLOSE in tokens else "length")


@dataclass
class Context:
    rows: list[Any]
    max_length: int = 512
    excess_length: str = "drop"
    adds_bos: bool = False
    max_positions: int = 1000
    rewards: dict[str, Any] = field(default_factory=dict)
    markup: str = "plain"
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer(self.adds_bos)
        self.renderer = Renderer(self.tokenizer)
        self.facts = SimpleNamespace(vocab_size=2000, max_positions=self.max_positions)
        self.train = TrainSettings(1, None, 8, self.max_length, self.excess_length, 0, True, "fp32", 2048, False, 1.0)

    def note(self, text: str, *, topic: str = "") -> None:
        self.notes.append(text)

    def examples(self, split: str, *, first: int | None = None) -> Examples:
        if split != "eval" or not self.rows:
            raise RecipeError("data.eval", "no data are given")
        return Examples(split, tuple((f"eval:{i}", example) for i, example in enumerate(self.rows))[:first])

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None
    ) -> Preparation:
        examples = first_examples(self.examples(split), first)
        return prepare_examples(examples, load_rendering(rendering, cast(Any, self)), limit)

    def build(self, kind: str, pick: Any, *, setting: str = "") -> Any:
        name = pick if isinstance(pick, str) else pick["name"]
        return self.rewards[f"{kind}:{name}"]


@pytest.fixture
def make_context() -> Callable[..., Context]:
    """A context over examples: strings are texts, pairs are question and answer, all else stays."""

    def make(*rows: Any, **options: Any) -> Context:
        examples = [
            Text(row)
            if isinstance(row, str)
            else Conversation((Message("user", row[0]), Message("assistant", row[1])))
            if isinstance(row, tuple)
            else row
            for row in rows
        ]
        assert all(isinstance(example, Conversation | Text | PromptCompletion | Task) for example in examples)
        return Context(examples, **options)

    return make


__all__ = ["make_context"]
