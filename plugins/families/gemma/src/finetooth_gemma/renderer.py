"""The renderer `gemma`.

    <bos><start_of_turn>user
    Hello?<end_of_turn>
    <start_of_turn>model
    Yes.<end_of_turn>

A trained message trains its content and its `<end_of_turn>`; headers and the line feed after `<end_of_turn>` never
train. Text that spells a special token stays plain text.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Conversation, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import TurnRenderer, noted, trimmed

BEGIN, TURN, TURN_END, DOCUMENT_END = "<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"
SPEAKERS = {"user": "user", "assistant": "model"}


class GemmaOptions(Options):
    """Options of `gemma`."""

    system: bool = True
    """Whether to write a system message at the beginning of the first user message, as Gemma 3 does; false refuses
    system messages, as Gemma 1 and 2 do."""


def build(options: GemmaOptions, context: Context) -> Gemma:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no Gemma tokens.
    """
    return noted(Gemma(context.tokenizer, system=options.system), context)


class Gemma(TurnRenderer):
    """Gemma markup for text conversations.

    Normalisation: blanks around the content of user and assistant are trimmed, those of a system message are not.

    Args:
        system: a system message opens the first user message.

    Raises:
        RecipeError: the tokenizer has no Gemma tokens.
    """

    name = "gemma"
    controls = (BEGIN, TURN, TURN_END)
    optional = (DOCUMENT_END,)
    stops = (TURN_END, DOCUMENT_END)
    extension = True

    def __init__(self, tokenizer: Tokenizer, *, system: bool = True) -> None:
        super().__init__(tokenizer)
        self._system = system

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """The range of a system message has the header of the user message that it opens.

        Raises:
            DataError: tools, tool calls, reasoning, roles that do not alternate or that Gemma does not have.
        """
        self._check(conversation)
        opened = False
        page.markup(BEGIN)
        for message, trains in zip(conversation.messages, trained, strict=True):
            page.message()
            if not opened:
                page.markup(f"{TURN}{SPEAKERS.get(message.role, 'user')}\n")
            opened = message.role == "system"
            if opened:
                page.say(message.content, trains, message.weights)
                page.markup("\n\n")
                continue
            page.say(message.content, trains, message.weights, cut=trimmed(message.content))
            page.markup(TURN_END, trains)
            page.markup("\n")
        if ask:
            page.markup(f"{TURN}model\n")

    def _check(self, conversation: Conversation) -> None:
        self.check_texts(conversation)
        messages = conversation.messages
        first = 1 if self._system and messages and messages[0].role == "system" else 0
        if first and len(messages) == 1:
            raise self.refuse("no place for a system message without a user message", "messages[0]", "add one")
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            if i >= first and message.role not in SPEAKERS:
                raise self.refuse(f"no role {message.role!r} here", where)
            if i >= first and (message.role == "user") != ((i - first) % 2 == 0):
                raise self.refuse(
                    f"turns that alternate, user first: {message.role!r} does not fit",
                    where,
                    "join neighbours of one role, or remove the row",
                )
