"""The renderer `llama3`.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>

    Hello?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

    Yes.<|eot_id|>

A trained message trains its content and its `<|eot_id|>`; headers and the blank line after them never train. As in the
models' own templates, blanks around a content are trimmed. Text that spells a special token stays plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Conversation, DataError, Message, Options, Parsed, RecipeError, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.examples import TrainOn
from finetooth_hooks.markup import Control, Piece, Stretch, said, tokenise, trained_messages
from finetooth_hooks.protocols import Tokenizer

BEGIN, HEADER, HEADER_END, TURN_END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
OTHER_ENDS = ("<|eom_id|>", "<|end_of_text|>")
ROLES = ("system", "user", "assistant")
OTHER = "remove them, or set data.renderer: jinja"


class Llama3Options(Options):
    """Options of `llama3`."""

    dated: bool = False
    """Open every conversation with a system message that states two dates, as Llama 3.1 and later do."""
    knowledge_date: str = "December 2023"
    """The date up to which the model knows, for `dated`."""
    today: str = "26 Jul 2024"
    """Today's date, for `dated`; fixed, so that a run gives the same tokens tomorrow. The default is the one that the
    models' own template falls back to."""


def build(options: Llama3Options, context: Context) -> Llama3:
    """
    Raises:
        RecipeError: the tokenizer has no Llama 3 tokens.
    """
    dates = f"Cutting Knowledge Date: {options.knowledge_date}\nToday Date: {options.today}\n\n"
    return Llama3(context.tokenizer, dates if options.dated else "")


class Llama3:
    """Llama 3 markup for text conversations.

    Args:
        preamble: what the first system message begins with; one is added if a conversation has none. Empty: nothing.

    Raises:
        RecipeError: the tokenizer has no Llama 3 tokens.
    """

    def __init__(self, tokenizer: Tokenizer, preamble: str = "") -> None:
        self._tokenizer, self._preamble = tokenizer, preamble
        self._ids = {name: _id(tokenizer, name) for name in (BEGIN, HEADER, HEADER_END, TURN_END)}
        others = (tokenizer.token_id(name) for name in OTHER_ENDS)
        self.stop_ids: tuple[int, ...] = (self._ids[TURN_END], *(id_ for id_ in others if id_ is not None))

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the conversation; the content and `<|eot_id|>` of trained messages weigh 1.

        `Rendered.spans` has one range for each message; what stands before the first message belongs to none.

        Raises:
            DataError: tools, tool calls, reasoning or a role this renderer cannot say.
        """
        _check(conversation.messages, conversation.tools)
        tokens, weights = tokenise(self._opening(conversation.messages), self._tokenizer)
        spans = []
        trained = trained_messages(conversation.messages, train_on)
        for i, (message, trains) in enumerate(zip(conversation.messages, trained, strict=True)):
            begin = len(tokens)
            ids, values = tokenise(self._message(i, message, trains), self._tokenizer)
            tokens, weights = tokens + ids, weights + values
            spans.append((begin, len(tokens)))
        return Rendered(tuple(tokens), tuple(weights), tuple(spans))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens up to and including the assistant's header and its blank line.

        Raises:
            DataError: tools, tool calls, reasoning or a role this renderer cannot say.
        """
        _check(messages, tools)
        pieces = self._opening(messages)
        for i, message in enumerate(messages):
            pieces += self._message(i, message, False)
        return tuple(tokenise([*pieces, *self._header("assistant"), Stretch("\n\n")], self._tokenizer)[0])

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """The assistant message that `tokens`, what came after a prompt, say: all up to the first stop token."""
        end = next((i for i, token in enumerate(tokens) if token in self.stop_ids), None)
        text = self._tokenizer.decode(tokens if end is None else tokens[:end])
        return Parsed(Message("assistant", text), "length" if end is None else "stop")

    def _opening(self, messages: Sequence[Message]) -> list[Piece]:
        """The beginning-of-text token, and the dated system message of a conversation that has no other."""
        opening: list[Piece] = [Control(self._ids[BEGIN])]
        if self._preamble and (not messages or messages[0].role != "system"):
            opening += self._message(0, Message("system", ""), False)
        return opening

    def _header(self, role: str) -> list[Piece]:
        return [Control(self._ids[HEADER]), Stretch(role), Control(self._ids[HEADER_END])]

    def _message(self, index: int, message: Message, trains: bool) -> list[Piece]:
        before = "\n\n" + (self._preamble if index == 0 and message.role == "system" else "")
        content = message.content.strip()
        cut = len(message.content) - len(message.content.lstrip())
        text = said(before, content, message.weights, trains=trains, cut=cut)
        return [*self._header(message.role), text, Control(self._ids[TURN_END], trains)]


def _id(tokenizer: Tokenizer, name: str) -> int:
    id_ = tokenizer.token_id(name)
    if id_ is None:
        raise RecipeError(
            "data.renderer",
            f"the tokenizer has no {name}, so its model does not speak llama3",
            action="set data.renderer: jinja, or another renderer of `ft plugins list`",
        )
    return id_


def _check(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
    if tools:
        raise DataError("tools", "renderer llama3 has no markup for tools", action=OTHER)
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.role not in ROLES:
            raise DataError(where, f"renderer llama3 has no role {message.role!r}", action=OTHER)
        if message.tool_calls:
            raise DataError(where, "renderer llama3 has no markup for tool calls", action=OTHER)
        if message.reasoning:
            raise DataError(where, "renderer llama3 has no markup for reasoning", action=OTHER)
