"""Versions with control tokens around the system message: v7-tekken and Small 3.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from finetooth_hooks import Message
from finetooth_hooks.data.examples import Conversation
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import json_text

from finetooth_mistral.answers import (
    BEGIN,
    CALLS,
    END,
    INST,
    INST_END,
    RESULTS,
    RESULTS_END,
    TOOLS,
    TOOLS_END,
    MistralTurns,
)
from finetooth_mistral.calls import read_apart

SYSTEM, SYSTEM_END = "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"
CALL_ID, ARGUMENTS, RESULT_CONTENT = "[CALL_ID]", "[ARGS]", "[TOOL_CONTENT]"


class MistralV7(MistralTurns):
    """v7-tekken: system messages anywhere, messages in any order, no tools.

    Normalisation: none.

    Args:
        default_system: what the system message of a conversation that begins without one says; empty adds none.
    """

    controls: ClassVar[tuple[str, ...]] = (BEGIN, END, INST, INST_END, SYSTEM, SYSTEM_END)
    alternates = False
    extension = True

    def __init__(self, tokenizer: Tokenizer, default_system: str = "") -> None:
        super().__init__(tokenizer)
        self._default_system = default_system

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """A default system message stands before the range of the first message.

        Raises:
            DataError: a role or shape that this version cannot say.
        """
        self.check(conversation)
        messages = conversation.messages
        page.markup(BEGIN)
        if self._default_system and (not messages or messages[0].role != "system"):
            page.markup(SYSTEM)
            self._default(page)
            page.markup(SYSTEM_END)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            page.message()
            if message.role == "system":
                self._between(page, SYSTEM, message, trains, SYSTEM_END)
            elif message.role == "user":
                if self.offers(conversation, i):
                    page.markup(TOOLS)
                    page.say(json_text([dict(tool) for tool in conversation.tools]))
                    page.markup(TOOLS_END)
                self._between(page, INST, message, trains, INST_END)
            elif message.role == "tool":
                self._result(page, message, trains)
            elif message.tool_calls:
                self._calls(page, message, trains)
            else:
                self._answer(page, message, trains)

    def _default(self, page: Page) -> None:
        page.say(self._default_system)

    def _result(self, page: Page, message: Message, trains: bool) -> None:
        page.markup(RESULTS)
        page.say(message.tool_call_id)
        self._between(page, RESULT_CONTENT, message, trains, RESULTS_END)

    def _answer(self, page: Page, message: Message, trains: bool) -> None:
        self.answer(page, message, trains, "", (0, len(message.content)))

    def _between(self, page: Page, opening: str, message: Message, trains: bool, closing: str) -> None:
        page.markup(opening)
        page.say(message.content, trains, message.weights)
        page.markup(closing, trains)

    def _calls(self, page: Page, message: Message, trains: bool) -> None:
        for call in message.tool_calls:
            page.markup(CALLS, trains)
            page.say(str(call["function"]["name"]), trains)
            page.markup(CALL_ID, trains)
            page.say(str(call["id"]), trains)
            page.markup(ARGUMENTS, trains)
            page.say(json_text(call["function"]["arguments"]), trains)
        page.markup(END, trains)


class Small32(MistralV7):
    """Mistral Small 3.2: v7 with tools; questions and answers alternate.

    Tools stand before the last user message and move on with every turn, so `extension` is False; without tools, the
    prompt of the next turn does begin with the turn before. As in the chat template, tools also stand before an earlier
    user message of the same content.

    Normalisation: blanks around tool calls are left out.
    """

    controls = (*MistralV7.controls, TOOLS, TOOLS_END, CALLS, CALL_ID, ARGUMENTS, RESULTS, RESULT_CONTENT, RESULTS_END)
    roles = ("system", "user", "assistant", "tool")
    takes_tools = True
    alternates = True
    extension = False

    def read_tokens(self, tokens: Sequence[int]) -> Message:
        content, *spans = self._split(tokens, CALLS)
        calls = [self._parts(span) for span in spans]
        read = read_apart([parts for parts in calls if parts is not None])
        if not calls or None in calls or read is None:
            return super().read_tokens(tokens)
        return Message("assistant", self.tokenizer.decode(content), tool_calls=read)

    def _parts(self, tokens: Sequence[int]) -> tuple[str, str, str] | None:
        """Name, id and arguments of a call."""
        name, *rest = self._split(tokens, CALL_ID)
        id_and_arguments = self._split(rest[0], ARGUMENTS) if len(rest) == 1 else ()
        if len(id_and_arguments) != 2:
            return None
        id_, arguments = (self.tokenizer.decode(part) for part in id_and_arguments)
        return self.tokenizer.decode(name), id_, arguments

    def _split(self, tokens: Sequence[int], spelling: str) -> list[list[int]]:
        """The tokens between those of a control token."""
        parts: list[list[int]] = [[]]
        for token in tokens:
            if token == self._controls.ids[spelling]:
                parts.append([])
            else:
                parts[-1].append(token)
        return parts
