"""A renderer as a family writes it: turn by turn, in text.

    class Example(TurnRenderer):
        name = "example"
        controls = ("<|im_start|>", "<|im_end|>")
        stops = ("<|im_end|>",)

        def write(self, page, conversation, trained, *, ask):
            for message, trains in zip(conversation.messages, trained, strict=True):
                page.message()
                page.markup(f"<|im_start|>{message.role}\\n")
                page.say(message.content, trains, message.weights)
                page.markup("<|im_end|>", trains)
                page.markup("\\n")
            if ask:
                page.markup("<|im_start|>assistant\\n")

What is written with `markup` may spell control tokens; what comes from the data goes through `say` and stays plain
text. `finetooth_kit.templates` proves such a renderer against the family's own chat template.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, TypeVar

from finetooth_hooks.bases import RendererBase
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Conversation, Message, Parsed, Rendered, TrainOn, Weighted
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Tokenizer
from finetooth_toolbox.messages.chat_templates import foreign_template
from finetooth_toolbox.messages.markup import trained_messages

from finetooth_rendering.page import Controls, Page

TEXT_ROLES = ("system", "user", "assistant")
"""Roles of a markup without tools."""

OTHER = "remove them, or set data.renderer: jinja"


class TurnRenderer(RendererBase, ABC):
    """A `protocols.Renderer` made of `write` and `read` (or `read_tokens`).

    Attributes:
        name: of the renderer, for messages.
        controls: spellings of the control tokens of its markup, which the tokenizer must have.
        optional: further ones, taken as control tokens where the tokenizer has them.
        stops: those of them that end an assistant message, as far as the tokenizer has them; the one it usually ends
            with comes first.
        extension: the prompt for turn k + 1 begins with the tokens of the conversation up to and with turn k, for every
            conversation.

    Raises:
        RecipeError: the tokenizer lacks a control token.
    """

    name: ClassVar[str]
    controls: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    stops: ClassVar[tuple[str, ...]]
    extension: bool = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._controls = Controls(self.name, tokenizer, self.controls, self.optional)
        ids = self._controls.ids
        self.stop_ids: tuple[int, ...] = tuple(ids[spelling] for spelling in self.stops if spelling in ids)

    @abstractmethod
    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """Write a conversation down.

        Args:
            trained: which messages train.
            ask: end where the assistant begins to speak.

        Raises:
            DataError: a role or shape the family cannot say; see `refuse`.
        """

    def read(self, text: str) -> Message:
        """The assistant message of a completion, whose text has no end-of-turn."""
        return Message("assistant", text)

    def read_tokens(self, tokens: Sequence[int]) -> Message:
        """The assistant message that the tokens of a completion say; its end-of-turn is not among them.

        `read` of their text. A markup whose control tokens structure an answer reads the tokens themselves: text that
        spells a control token is not one.
        """
        return self.read(self.tokenizer.decode(tokens))

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """Tokens of the conversation with weights, and one range of tokens for each message.

        Raises:
            DataError: a role or shape the family cannot say.
        """
        self._check_speakers(conversation.messages)
        page = Page(self._controls)
        self.write(page, conversation, trained_messages(conversation.messages, train_on), ask=False)
        return page.rendered()

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Tokens up to where the assistant begins to speak.

        Raises:
            DataError: a role or shape the family cannot say.
        """
        self._check_speakers(messages)
        page = Page(self._controls)
        self.write(page, Conversation(tuple(messages), tuple(tools)), (False,) * len(messages), ask=True)
        return page.rendered().tokens

    def parse(self, tokens: Sequence[int]) -> Parsed:
        """The assistant message that `tokens`, what came after a prompt, say: all up to the first stop token."""
        end = next((i for i, token in enumerate(tokens) if token in self.stop_ids), None)
        return Parsed(self.read_tokens(tokens if end is None else tokens[:end]), "length" if end is None else "stop")

    def check_texts(
        self,
        conversation: Conversation,
        roles: Sequence[str] = TEXT_ROLES,
        *,
        reasoning: bool = False,
        calls: bool = False,
        for_tools: str = OTHER,
    ) -> None:
        """Refuse messages that a markup of plain texts cannot express.

        Args:
            roles: that the markup has.
            reasoning: it has a place for reasoning.
            calls: it has one for tools and their calls.
            for_tools: what to do about tools, calls and their results.

        Raises:
            DataError: tools, tool calls or reasoning without a place, or another role.
        """
        if conversation.tools and not calls:
            raise self.refuse("no markup for tools", "tools", for_tools)
        for i, message in enumerate(conversation.messages):
            where = f"messages[{i}]"
            if message.role not in roles:
                raise self.refuse(f"no role {message.role!r}", where, for_tools if message.role == "tool" else OTHER)
            if message.tool_calls and not calls:
                raise self.refuse("no markup for tool calls", where, for_tools)
            if message.reasoning and not reasoning:
                raise self.refuse("no markup for reasoning", where)

    def _check_speakers(self, messages: Sequence[Message]) -> None:
        """Only the assistant thinks and calls; what others are said to would be lost.

        Raises:
            DataError: a message of another role has calls or reasoning.
        """
        for i, message in enumerate(messages):
            if message.role != "assistant" and (message.tool_calls or message.reasoning):
                what = "calls" if message.tool_calls else "reasoning"
                raise self.refuse(f"no place for {what} of the role {message.role!r}", f"messages[{i}]", "fix the row")

    def refuse(self, what: str, where: str, action: str = OTHER) -> DataError:
        """The error for content that the family's markup cannot express.

        Args:
            what: `no role 'tool'`, `no markup for tools`.
            where: `tools`, `messages[3]`.
        """
        return DataError(where, f"renderer {self.name} has {what}", action=action)


R = TypeVar("R", bound=TurnRenderer)


def noted(renderer: R, context: Context, compared: TurnRenderer | None = None, **variables: Any) -> R:
    """The renderer; a note if the model's own template says something else.

    Args:
        compared: the renderer with the options that the template follows, if these are others.
        variables: what the template reads, as the options have it.
    """
    if difference := foreign_template(compared or renderer, renderer.name, context.tokenizer, **variables):
        context.note(difference)
    return renderer


def trimmed(text: str) -> tuple[int, int]:
    """The range of a text without the blanks around it, for `Page.say(..., cut=)`."""
    begin = len(text) - len(text.lstrip())
    return begin, max(begin, len(text.rstrip()))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON as chat templates write it: letters as they are, keys in their order."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def json_string(text: str, weights: Sequence[Weighted] = ()) -> tuple[str, tuple[Weighted, ...]]:
    """A text as JSON writes it, in quotes, with the ranges of the same characters."""
    if not weights:
        return json_text(text), ()
    # each character is escaped by itself, so its place is known from the lengths of those before it
    places = list(accumulate((len(json_text(letter)) - 2 for letter in text), initial=1))
    last = len(text)
    moved = [Weighted(places[min(w.start, last)], places[min(w.stop, last)], w.weight) for w in weights]
    return json_text(text), tuple(part for part in moved if part.start < part.stop)


def split_thought(text: str, begin: str = "<think>", end: str = "</think>") -> tuple[str, str]:
    """Reasoning and the rest of what a model wrote, without the line feeds around the reasoning and before the rest.

    A block that was not closed is reasoning to its end.
    """
    opened = text.lstrip()
    if not opened.startswith(begin):
        return "", text
    reasoning, _, rest = opened.removeprefix(begin).partition(end)
    return reasoning.strip("\n"), rest.lstrip("\n")


def last_question(messages: Sequence[Message]) -> int:
    """Index of the last message of the user, -1 without one."""
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
