"""Messages as `[role] content` with the tokenizer's end token after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Context, Conversation, DataError, Message, NoOptions, Parsed, Rendered
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.protocols import Tokenizer


def build(options: NoOptions, context: Context) -> Bracketed:
    """Called once a run, with the tokenizer of the recipe's model in the context."""
    return Bracketed(context.tokenizer)


class Bracketed:
    """Renders and parses. Text of a message is never read as a special token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.eos_id is None:
            problem = "it has no end token, which the renderer acme_renderer needs"
            raise DataError("tokenizer", problem, action="choose another renderer")
        self._tokenizer, self._end = tokenizer, tokenizer.eos_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an assistant message."""
        return (self._end,)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the whole conversation; content and end token of the trained messages weigh 1."""
        tokens: list[int] = []
        weights: list[float] = []
        spans: list[tuple[int, int]] = []
        speakers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        chosen = set(speakers[-1:] if train_on == "last" else speakers)
        for index, message in enumerate(conversation.messages):
            trained = (train_on == "all" or index in chosen) if message.train is None else message.train
            header, content = self._header(message.role), self._content(message)
            spans.append((len(tokens), len(tokens) + len(header) + len(content)))
            tokens += header + content
            weights += [0.0] * len(header) + [float(trained)] * len(content)
        return Rendered(tuple(tokens), tuple(weights), tuple(spans))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens up to where the assistant begins to speak."""
        return (*self.render(Conversation(tuple(messages), tuple(tools))).tokens, *self._header("assistant"))

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """Read an assistant message back from its tokens."""
        ids = list(tokens)
        ended = self._end in ids
        content = self._tokenizer.decode(ids[: ids.index(self._end)] if ended else ids)
        return Parsed(Message("assistant", content), "stop" if ended else "length")

    def _header(self, role: str) -> list[int]:
        return self._tokenizer.encode(f"[{role}] ")

    def _content(self, message: Message) -> list[int]:
        if message.tool_calls or message.reasoning:
            problem = "the renderer acme_renderer cannot say tool calls or reasoning"
            raise DataError("row", problem, action="choose another renderer")
        return [*self._tokenizer.encode(message.content), self._end]
