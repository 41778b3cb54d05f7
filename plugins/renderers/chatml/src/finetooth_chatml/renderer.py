"""The ChatML renderer.

    <|im_start|>system
    You are ...<|im_end|>
    <|im_start|>user
    Hello?<|im_end|>
    <|im_start|>assistant
    Yes.<|im_end|>

A trained message trains its content and its `<|im_end|>`; the header and the line feed after `<|im_end|>` never train,
since a model is not asked for them: a completion ends with `<|im_end|>`.

Tokens are those of the model's own ChatML template, with one deliberate difference: text in a message that spells a
special token (`<|im_end|>`) stays plain text, so that data cannot open or close a message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Conversation, DataError, Message, Options, Parsed, RecipeError, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.examples import TrainOn
from finetooth_hooks.markup import Control, Piece, Stretch, said, tokenise, trained_messages
from finetooth_hooks.protocols import Tokenizer

from finetooth_chatml import template

START, END, DOCUMENT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ROLES = ("system", "user", "assistant")
LINE_FEED = Stretch("\n")
OTHER = "remove them, or set data.renderer: jinja"


class ChatMLOptions(Options):
    """Options of `chatml`."""

    default_system: str | None = "auto"
    """The system message of a conversation that has none. `auto` takes the one the model's own chat template adds;
    null adds none."""


def build(options: ChatMLOptions, context: Context) -> ChatML:
    """
    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """
    tokenizer = context.tokenizer
    own = tokenizer.chat_template
    system = template.default_system(own) if options.default_system == "auto" else options.default_system or ""
    renderer = ChatML(tokenizer, system)
    if own is not None and (difference := _difference(renderer, own)):
        context.note(f"renderer chatml: {difference}; data.renderer: jinja follows the model's own chat template")
    return renderer


class ChatML:
    """ChatML for text conversations.

    Args:
        default_system: content of the system message of a conversation that begins without one; empty adds none.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """

    def __init__(self, tokenizer: Tokenizer, default_system: str = "") -> None:
        start, end = tokenizer.token_id(START), tokenizer.token_id(END)
        if start is None or end is None:
            raise RecipeError(
                "data.renderer",
                f"the tokenizer has no {START if start is None else END}, so its model does not speak chatml",
                action="set data.renderer: jinja, or another renderer of `ft plugins list`",
            )
        self._tokenizer, self._default_system = tokenizer, default_system
        self._start, self._end = start, end
        self._opening, self._closing = Control(start), (Control(end), Control(end, True))
        self._default: tuple[list[int], list[float]] | None = None
        document_end = tokenizer.token_id(DOCUMENT_END)
        self.stop_ids: tuple[int, ...] = (end,) if document_end is None else (end, document_end)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the conversation; the content and `<|im_end|>` of trained messages weigh 1.

        `Rendered.spans` has one range for each message, from `<|im_start|>` to the line feed after `<|im_end|>`; a
        default system message stands before the first of them.

        Raises:
            DataError: tools, tool calls, reasoning or a role chatml cannot say.
        """
        _check(conversation.messages, conversation.tools)
        tokens, weights = self._preamble(conversation.messages)
        pieces: list[Piece] = []
        for message, trains in zip(
            conversation.messages, trained_messages(conversation.messages, train_on), strict=True
        ):
            pieces += self._message(message, trains)
        ids, values = tokenise(pieces, self._tokenizer)  # all at once: that is much quicker
        opening = len(tokens)
        tokens, weights = tokens + ids, weights + values
        begins = [opening]  # text never becomes `<|im_start|>`, so each of them begins a message
        for _ in conversation.messages[1:]:
            begins.append(tokens.index(self._start, begins[-1] + 1))
        return Rendered(tuple(tokens), tuple(weights), tuple(zip(begins, [*begins[1:], len(tokens)], strict=True)))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens up to and including `<|im_start|>assistant` and its line feed.

        Raises:
            DataError: tools, tool calls, reasoning or a role chatml cannot say.
        """
        _check(messages, tools)
        tokens, _ = self._preamble(messages)
        pieces = [piece for message in messages for piece in self._message(message, False)]
        opening: list[Piece] = [Control(self._start), Stretch("assistant\n")]
        return (*tokens, *tokenise([*pieces, *opening], self._tokenizer)[0])

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """The assistant message that `tokens`, what came after a prompt, say: all up to the first stop token."""
        end = next((i for i, token in enumerate(tokens) if token in self.stop_ids), None)
        text = self._tokenizer.decode(tokens if end is None else tokens[:end])
        return Parsed(Message("assistant", text), "length" if end is None else "stop")

    def _preamble(self, messages: Sequence[Message]) -> tuple[list[int], list[float]]:
        """The default system message, if the conversation begins without one."""
        if not self._default_system or (messages and messages[0].role == "system"):
            return [], []
        if self._default is None:
            self._default = tokenise(self._message(Message("system", self._default_system), False), self._tokenizer)
        tokens, weights = self._default
        return list(tokens), list(weights)

    def _message(self, message: Message, trains: bool) -> list[Piece]:
        header = f"{message.role}\n"
        return [
            self._opening,
            said(header, message.content, message.weights, trains=trains),
            self._closing[trains],
            LINE_FEED,
        ]


def _check(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> None:
    if tools:
        raise DataError("tools", "renderer chatml has no markup for tools", action=OTHER)
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.role not in ROLES:
            raise DataError(where, f"renderer chatml has no role {message.role!r}", action=OTHER)
        if message.tool_calls:
            raise DataError(where, "renderer chatml has no markup for tool calls", action=OTHER)
        if message.reasoning:
            raise DataError(where, "renderer chatml has no markup for reasoning", action=OTHER)


def _difference(renderer: ChatML, own: str) -> str:
    """In words how the model's own template differs, empty if it does not."""
    for probe in template.PROBES:
        expected = template.render(own, probe)
        if expected is None:
            return "the model's chat template cannot be rendered for comparison"
        messages = tuple(Message(message["role"], message["content"]) for message in probe)
        text = renderer._tokenizer.decode(renderer.render(Conversation(messages)).tokens)
        if text != expected:
            return f"the model's own chat template says {expected!r} where chatml says {text!r}"
    return ""
