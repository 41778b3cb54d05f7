"""What all versions of the markup share: which conversations they can say, and how an answer is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from finetooth_hooks import Message
from finetooth_hooks.data.examples import Conversation, Weighted
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import function_call
from finetooth_rendering.turns import TurnRenderer

from finetooth_mistral.calls import ID_LENGTH

BEGIN, END, INST, INST_END = "<s>", "</s>", "[INST]", "[/INST]"
CALLS, RESULTS, RESULTS_END = "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"
TOOLS, TOOLS_END = "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"


class MistralTurns(TurnRenderer):
    """A version of Mistral's markup.

    Attributes:
        roles: that it has.
        takes_tools: it has markup for tools, calls and results.
        alternates: questions and answers follow each other, calls and results left aside.
        numbered: calls and results say their ids.
        thinks: it has markup for reasoning, and messages with calls may have contents.
    """

    name = "mistral"
    stops = (END,)
    roles: ClassVar[tuple[str, ...]] = ("system", "user", "assistant")
    takes_tools: ClassVar[bool] = False
    alternates: ClassVar[bool] = True
    numbered: ClassVar[bool] = True
    thinks: ClassVar[bool] = False

    def check(self, conversation: Conversation) -> None:
        """Checks that this version of the markup can write the conversation.

        Raises:
            DataError: a role or shape that this version cannot say.
        """
        if conversation.tools and not self.takes_tools:
            raise self.refuse("no markup for tools in this version", "tools")
        messages = conversation.messages
        first = 1 if messages and messages[0].role == "system" else 0
        turn = 0
        for i, message in enumerate(messages):
            self._check_message(message, f"messages[{i}]")
            if i < first or not self.alternates or message.role == "tool" or message.tool_calls:
                continue
            if (message.role == "user") != (turn % 2 == 0):
                raise self.refuse(
                    f"turns that alternate, user first: {message.role!r} does not fit",
                    f"messages[{i}]",
                    "join neighbours of one role, or remove the row",
                )
            turn += 1

    def _check_message(self, message: Message, where: str) -> None:
        if message.role not in self.roles:
            raise self.refuse(f"no role {message.role!r} in this version", where)
        if message.reasoning and not self.thinks:
            raise self.refuse("no markup for reasoning in this version", where)
        ids = []
        if message.tool_calls:
            if not self.takes_tools:
                raise self.refuse("no markup for tool calls in this version", where)
            if message.content.strip() and not self.thinks:
                raise self.refuse("no place for content next to tool calls", where, "leave one of them out")
            for call in message.tool_calls:
                function_call(call, where)
            ids = [str(call.get("id", "")) for call in message.tool_calls]
        elif message.role == "tool":
            ids = [message.tool_call_id]
        for id_ in ids if self.numbered else ():
            if len(id_) != ID_LENGTH:
                raise self.refuse(
                    f"ids of tool calls of {ID_LENGTH} characters, not {id_!r}", where, "give calls such ids"
                )

    def offers(self, conversation: Conversation, index: int) -> bool:
        """Tools stand before this message of the user: the last one and, as in the chat templates, earlier ones of the
        same content."""
        messages = conversation.messages
        question = next((message for message in reversed(messages) if message.role == "user"), None)
        return bool(conversation.tools) and question is not None and messages[index].content == question.content

    def answer(self, page: Page, message: Message, trains: bool, blank: str, cut: tuple[int, int]) -> None:
        """Write content and the end of the turn; a blank before it weighs what the content's first character does."""
        weights = message.weights
        if blank:
            content, weights = after_blank(message.content[slice(*cut)], weights, cut)
            page.say(content, trains, weights)
        else:
            page.say(message.content, trains, weights, cut=cut)
        page.markup(END, trains)


def after_blank(content: str, weights: Sequence[Weighted], cut: tuple[int, int]) -> tuple[str, tuple[Weighted, ...]]:
    """A content after a blank, and its ranges moved; one over its first character is over the blank too.

    Args:
        content: what is left of it.
        weights: ranges of the whole.
        cut: which characters of the whole are left.
    """
    begin, end = cut
    moved = [Weighted(max(r.start, begin) - begin + 1, min(r.stop, end) - begin + 1, r.weight) for r in weights]
    widened = [r if r.start > 1 else Weighted(0, r.stop, r.weight) for r in moved if r.start < r.stop]
    return f" {content}", tuple(widened)
