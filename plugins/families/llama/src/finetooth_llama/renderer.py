"""The renderer `llama3`.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>

    Hello?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

    Yes.<|eot_id|>

A trained message trains its content and its `<|eot_id|>`; headers and the blank line after them never train. As in the
models' own templates, blanks around a content are trimmed. Text that spells a special token stays plain text.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Conversation, Options
from finetooth_hooks.context import Context
from finetooth_hooks.page import Page
from finetooth_hooks.protocols import Tokenizer
from finetooth_hooks.turns import TurnRenderer, trimmed

BEGIN, HEADER, HEADER_END, TURN_END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
OTHER_ENDS = ("<|eom_id|>", "<|end_of_text|>")
ROLES = ("system", "user", "assistant")


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


class Llama3(TurnRenderer):
    """Llama 3 markup for text conversations.

    Args:
        preamble: what the first system message begins with; one is added if a conversation has none. Empty: nothing.

    Raises:
        RecipeError: the tokenizer has no Llama 3 tokens.
    """

    name = "llama3"
    controls = (BEGIN, HEADER, HEADER_END, TURN_END)
    optional = OTHER_ENDS
    stops = (TURN_END, *OTHER_ENDS)
    extension = True

    def __init__(self, tokenizer: Tokenizer, preamble: str = "") -> None:
        super().__init__(tokenizer)
        self._preamble = preamble

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; what stands before the first message belongs to none.

        Raises:
            DataError: tools, tool calls, reasoning or a role this renderer cannot say.
        """
        messages = conversation.messages
        self._check(conversation)
        page.markup(BEGIN)
        if self._preamble and (not messages or messages[0].role != "system"):
            page.markup(f"{HEADER}system{HEADER_END}\n\n{self._preamble}{TURN_END}")
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            page.message()
            page.markup(f"{HEADER}{message.role}{HEADER_END}\n\n")
            if i == 0 and message.role == "system":
                page.markup(self._preamble)
            page.say(message.content, trains, message.weights, cut=trimmed(message.content))
            page.markup(TURN_END, trains)
        if ask:
            page.markup(f"{HEADER}assistant{HEADER_END}\n\n")

    def _check(self, conversation: Conversation) -> None:
        if conversation.tools:
            raise self.refuse("no markup for tools", "tools")
        for i, message in enumerate(conversation.messages):
            where = f"messages[{i}]"
            if message.role not in ROLES:
                raise self.refuse(f"no role {message.role!r}", where)
            if message.tool_calls:
                raise self.refuse("no markup for tool calls", where)
            if message.reasoning:
                raise self.refuse("no markup for reasoning", where)
