"""v13, the version of models that think before they answer (Magistral since 2507, Ministral 3)."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Message
from finetooth_hooks.data.examples import Conversation
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
)
from finetooth_mistral.calls import read_unnumbered
from finetooth_mistral.system_prompt import ARGUMENTS, SYSTEM, SYSTEM_END, MistralV7

THINK, THINK_END = "[THINK]", "[/THINK]"


class MistralV13(MistralV7):
    """v13: tools stand before the first user message, ids of calls are not written, and an answer may begin with what
    the model thinks, which stays in every later turn.

    Normalisation: ids of calls and results are left out; of reasoning that is empty, its markup too.

    Raises:
        RecipeError: the tokenizer lacks a control token, as the versions before do.
    """

    controls = (
        BEGIN, END, INST, INST_END, SYSTEM, SYSTEM_END, TOOLS, TOOLS_END, CALLS, ARGUMENTS, RESULTS, RESULTS_END,
        THINK, THINK_END,
    )  # fmt: skip
    roles = ("system", "user", "assistant", "tool")
    takes_tools = True
    alternates = True
    numbered = False
    thinks = True
    extension = True

    def offers(self, conversation: Conversation, index: int) -> bool:
        """Tools stand before the first message of the user."""
        first = next((i for i, message in enumerate(conversation.messages) if message.role == "user"), -1)
        return bool(conversation.tools) and index == first

    def read_tokens(self, tokens: Sequence[int]) -> Message:
        begin, end, called = (self._controls.ids[name] for name in (THINK, THINK_END, CALLS))
        rest, reasoning = list(tokens), ""
        if rest[:1] == [begin]:
            stop = rest.index(end) if end in rest else len(rest)
            reasoning, rest = self.tokenizer.decode(rest[1:stop]), rest[stop + 1 :]
        parts: list[list[int]] = [[]]
        for token in rest:
            if token == called:
                parts.append([])
            else:
                parts[-1].append(token)
        calls = read_unnumbered([self._call(part) for part in parts[1:]])
        if calls is None:
            return Message("assistant", self.tokenizer.decode(rest), reasoning=reasoning)
        return Message("assistant", self.tokenizer.decode(parts[0]), reasoning=reasoning, tool_calls=calls)

    def _call(self, tokens: Sequence[int]) -> tuple[str, str]:
        """Name and arguments of a call; both empty if it is none."""
        at = next((i for i, token in enumerate(tokens) if token == self._controls.ids[ARGUMENTS]), None)
        if at is None:
            return "", ""
        return self.tokenizer.decode(tokens[:at]), self.tokenizer.decode(tokens[at + 1 :])

    def _default(self, page: Page) -> None:
        page.markup(self._default_system)  # the template's own text, which shows how thoughts are marked

    def _result(self, page: Page, message: Message, trains: bool) -> None:
        self._between(page, RESULTS, message, trains, RESULTS_END)

    def _answer(self, page: Page, message: Message, trains: bool) -> None:
        if message.reasoning:
            page.markup(THINK, trains)
            page.say(message.reasoning, trains, message.reasoning_weights)
            page.markup(THINK_END, trains)
        page.say(message.content, trains, message.weights)
        for call in message.tool_calls:
            page.markup(CALLS, trains)
            page.say(str(call["function"]["name"]), trains)
            page.markup(ARGUMENTS, trains)
            page.say(json_text(call["function"]["arguments"]), trains)
        page.markup(END, trains)

    def _calls(self, page: Page, message: Message, trains: bool) -> None:
        self._answer(page, message, trains)
