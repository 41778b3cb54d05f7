"""Versions whose system message stands inside a user message: v1 and v3."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Message
from finetooth_hooks.data.examples import Conversation
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import last_question, trimmed

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
from finetooth_mistral.calls import listed, offered, read_listed


class MistralV1(MistralTurns):
    """v1: `[INST]` and `[/INST]` are plain text, the system message opens the first user message. No tools.

    Normalisation: none. Text that spells `[INST]` is what the markup is, since it has no token of its own.
    """

    controls = (BEGIN, END)
    extension = True

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """The range of a system message is empty; it is written in that of the first user message.

        Raises:
            DataError: a role or shape that v1 cannot say.
        """
        self.check(conversation)
        system = leading_system(self, conversation.messages)
        page.markup(BEGIN)
        for i, (message, trains) in enumerate(zip(conversation.messages, trained, strict=True)):
            page.message()
            if message.role == "assistant":
                self.answer(page, message, trains, " ", (0, len(message.content)))
            elif message.role == "user":
                page.markup(f" {INST} ")
                if i == 1 and system is not None:
                    page.say(system.content, trained[0], system.weights)
                    page.markup("\n\n")
                page.say(message.content, trains, message.weights)
                page.markup(f" {INST_END}", trains)

    def read_tokens(self, tokens: Sequence[int]) -> Message:
        # a tokenizer may leave out the blank before the first word of what it decodes: here that is part of the markup,
        # and a further one of the content
        before = self.tokenizer.encode(INST_END)
        text = self.tokenizer.decode([*before, *tokens])[len(self.tokenizer.decode(before)) :]
        return Message("assistant", text.removeprefix(" "))


class MistralV3(MistralTurns):
    """v3, and v3-tekken, which has no blanks around its control tokens.

    Tools stand before the last user message and the system message opens it, so both move on with every turn and the
    prompt of the next turn begins otherwise: `extension` is False. As in the chat template, tools also stand before an
    earlier user message of the same content.

    Normalisation: v3 trims answers, v3-tekken does not; blanks around tool calls are left out.

    Args:
        blank: what stands around control tokens.
        always: the system message is also written where the conversation continues after the last user message.
    """

    controls = (BEGIN, END, INST, INST_END, TOOLS, TOOLS_END, CALLS, RESULTS, RESULTS_END)
    roles = ("system", "user", "assistant", "tool")
    takes_tools = True

    def __init__(self, tokenizer: Tokenizer, *, blank: str, always: bool = True) -> None:
        super().__init__(tokenizer)
        self._blank, self._always = blank, always
        self._calls_id = self._controls.ids[CALLS]

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """The range of a system message is empty; it is written in that of the last user message.

        Raises:
            DataError: a role or shape that v3 cannot say.
        """
        self.check(conversation)
        messages, blank = conversation.messages, self._blank
        system = leading_system(self, messages)
        last = last_question(messages)
        opens = last if self._always or last == len(messages) - 1 else -1
        page.markup(BEGIN)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            page.message()
            if message.role == "user":
                if self.offers(conversation, i):
                    page.markup(TOOLS)
                    page.say(f"{blank}{offered(conversation.tools)}")
                    page.markup(TOOLS_END)
                page.markup(f"{INST}{blank}")
                if i == opens and system is not None:
                    page.say(system.content, trained[0], system.weights)
                    page.markup("\n\n")
                page.say(message.content, trains, message.weights)
                page.markup(INST_END, trains)
            elif message.role == "tool":
                page.markup(f'{RESULTS}{blank}{{"content": ')
                page.say(message.content, trains, message.weights)
                page.say(f', "call_id": "{message.tool_call_id}"}}')
                page.markup(RESULTS_END, trains)
            elif message.tool_calls:
                page.markup(CALLS, trains)
                page.say(f"{blank}{listed(message.tool_calls)}", trains)
                page.markup(END, trains)
            elif message.role == "assistant":
                cut = trimmed(message.content) if blank else (0, len(message.content))
                self.answer(page, message, trains, blank, cut)

    def read_tokens(self, tokens: Sequence[int]) -> Message:
        if self._calls_id in tokens:
            at = list(tokens).index(self._calls_id)
            calls = read_listed(self.tokenizer.decode(tokens[at + 1 :]))
            if calls:
                return Message("assistant", self._text(tokens[:at]), tool_calls=calls)
        return Message("assistant", self._text(tokens))

    def _text(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(tokens)
        return text.strip() if self._blank else text


def leading_system(renderer: MistralTurns, messages: Sequence[Message]) -> Message | None:
    """The system message at the beginning.

    Raises:
        DataError: no user message could hold it, or there is another one.
    """
    for i, message in enumerate(messages[1:], start=1):
        if message.role == "system":
            raise renderer.refuse("no system message but the first", f"messages[{i}]", "join it with another message")
    if not messages or messages[0].role != "system":
        return None
    if len(messages) == 1:
        raise renderer.refuse("no place for a system message without a user message", "messages[0]", "add one")
    return messages[0]
