"""Reasoning in the markups of DeepSeek: where it stands in a message, whether it is written, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.data.examples import Rendered, TrainOn, Weighted
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.turns import TurnRenderer, last_question

from finetooth_deepseek.markup import CONTROLS, END, OPTIONAL, THINK, THOUGHT


class ThinkingOptions(Options):
    """What the renderers of DeepSeek have in common."""

    thinking: bool = False
    """Whether the model thinks: the prompt opens a think block, and the first answer to the last question is written
    with its reasoning. Otherwise reasoning is left out, as in the models' own templates, and counted."""
    keep_reasoning: bool = False
    """With `thinking`: also write the reasoning of answers to earlier questions."""


class Thought(NamedTuple):
    """Where an answer says what.

    Attributes:
        inline: its reasoning stands in the content, before a `</think>`.
        reasoning: range of `Message.reasoning`, or of the content if `inline`, without an opening `<think>`.
        content: range of the content behind that `</think>`; all of it without one.
        twice: the content has reasoning, and the message has another one of its own.
    """

    inline: bool
    reasoning: tuple[int, int]
    content: tuple[int, int]
    twice: bool = False


def thought_of(message: Message, *, last: bool) -> Thought:
    """Reasoning and answer of a message of the assistant; the templates write of a content only what stands behind a
    `</think>`.

    Args:
        last: behind the last one, not the first.
    """
    content, own = message.content, (0, len(message.reasoning))
    stop = content.rfind(THOUGHT) if last else content.find(THOUGHT)
    if stop < 0:
        return Thought(False, own, (0, len(content)))
    answer = (stop + len(THOUGHT), len(content))
    start = stop - len(content[:stop].lstrip())
    start = start + len(THINK) if content.startswith(THINK, start) else 0
    thinks = bool(content[start:stop].strip())
    if message.reasoning or not thinks:
        return Thought(False, own, answer, twice=thinks)
    return Thought(True, (start, stop), answer)


def whole_content(conversation: Conversation, i: int) -> bool:
    """The templates write the content of message i as it is: it has calls, or follows what a tool said."""
    messages = conversation.messages
    return bool(messages[i].tool_calls) or (i > 0 and messages[i - 1].role == "tool")


class ThinkingTurns(TurnRenderer):
    """What `deepseek_v3`, `deepseek_r1` and `deepseek_v3_1` share.

    Attributes:
        splits_last: a content is split at the last `</think>` that it spells, not at the first.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """

    controls = CONTROLS
    optional: ClassVar[tuple[str, ...]] = OPTIONAL
    stops = (END,)
    splits_last: ClassVar[bool]

    def __init__(self, tokenizer: Tokenizer, options: ThinkingOptions) -> None:
        super().__init__(tokenizer)
        self._thinking, self._keeps = options.thinking, options.keep_reasoning

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with remarks on what is left out."""
        return replace(super().render(conversation, train_on=train_on), remarks=self.left_out(conversation))

    def left_out(self, conversation: Conversation) -> tuple[str, ...]:
        """What of a conversation is not written down."""
        omissions: dict[str, None] = {}
        for i, (message, written) in enumerate(
            zip(conversation.messages, self.reasons(conversation.messages), strict=True)
        ):
            cut = message.role == "assistant" and (written or not whole_content(conversation, i))
            thought = self.thought_of(message) if cut else None
            if not written and (message.reasoning or (thought is not None and thought.inline)):
                omissions["reasoning left out"] = None
            if thought is not None and thought.twice:
                omissions["a think block next to reasoning left out"] = None
        if conversation.tools:
            omissions["tool schemas left out"] = None
        return tuple(omissions)

    def reasons(self, messages: Sequence[Message]) -> list[bool]:
        """Of which messages the reasoning is written."""
        last = last_question(messages)
        return [self.thinks(i, last) and i > 0 and messages[i - 1].role == "user" for i in range(len(messages))]

    def thinks(self, i: int, last: int) -> bool:
        """Message i is written with its reasoning, if it follows a question.

        Args:
            last: index of the last question.
        """
        return self._thinking and (i > last or self._keeps)

    def thought_of(self, message: Message) -> Thought:
        """Where a message says what."""
        return thought_of(message, last=self.splits_last)

    def written_thought(self, message: Message, where: str) -> tuple[str, tuple[Weighted, ...], tuple[int, int]]:
        """The text in which the reasoning of a message stands, that text's weights, and the range of the reasoning.

        Raises:
            DataError: it spells a think block, so that it would be read back as something else.
        """
        thought = self.thought_of(message)
        text, weights = (message.reasoning, message.reasoning_weights)
        if thought.inline:
            text, weights = message.content, message.weights
        inside = text[slice(*thought.reasoning)]
        if THINK in inside or THOUGHT in inside:
            raise self.refuse("one think block, and here is a second inside or before it", where, "fix the row")
        return text, weights, thought.reasoning
