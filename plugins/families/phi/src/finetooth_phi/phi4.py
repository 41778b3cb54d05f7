"""The renderer `phi4`.

    <|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hello?<|im_end|>

all on one line. Phi-4-reasoning thinks between `<think>` and `</think>` at the beginning of its answer. A trained
message trains its reasoning with both marks, its content and its `<|im_end|>`. Text that spells a special token stays
plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import TurnRenderer, noted
from finetooth_toolbox.messages.chat_templates import default_system

START, SEPARATOR, END, DOCUMENT_END = "<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"
THINK, THINK_END = "<think>", "</think>"
_SYSTEM = re.compile(r"<\|im_start\|>system<\|im_sep\|>(.*?)<\|im_end\|>", re.DOTALL)


class Phi4Options(Options):
    """Options of `phi4`."""

    default_system: str | None = "auto"
    """System message for conversations without one. `auto` takes the one that the model's own chat template adds, as
    Phi-4-reasoning's does; null adds none."""


def build(options: Phi4Options, context: Context) -> Phi4:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no Phi-4 tokens.
    """
    default = options.default_system
    if default == "auto":
        default = default_system(context.tokenizer.chat_template, _SYSTEM)
    return noted(Phi4(context.tokenizer, default or ""), context)


class Phi4(TurnRenderer):
    """Phi-4 markup for text conversations with reasoning.

    The chat template knows no reasoning apart from the content; here it is written in front of the content, between its
    two marks and with nothing around them, and stays in every turn. A content that begins with `<think>` is read back
    as reasoning and content.

    Normalisation: none.

    Args:
        default_system: content of the system message of a conversation that begins without one; empty adds none.

    Raises:
        RecipeError: the tokenizer has no Phi-4 tokens.
    """

    name = "phi4"
    controls = (START, SEPARATOR, END)
    optional = (DOCUMENT_END, THINK, THINK_END)
    stops = (END, DOCUMENT_END)
    extension = True

    def __init__(self, tokenizer: Tokenizer, default_system: str = "") -> None:
        super().__init__(tokenizer)
        self._default_system = default_system

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """A default system message stands before the range of the first message.

        Raises:
            DataError: tools, tool calls, a role this renderer cannot say, or reasoning of another than the assistant.
        """
        messages = conversation.messages
        self.check_texts(conversation, reasoning=True)
        if self._default_system and (not messages or messages[0].role != "system"):
            page.markup(f"{START}system{SEPARATOR}")
            page.say(self._default_system)
            page.markup(END)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if message.role == "system" and i:
                raise self.refuse("no system message but the first", f"messages[{i}]", "join it with another message")
            page.message()
            page.markup(f"{START}{message.role}{SEPARATOR}")
            if message.reasoning:
                self._think(page, message, trains)
            page.say(message.content, trains, message.weights)
            page.markup(END, trains)
        if ask:
            page.markup(f"{START}assistant{SEPARATOR}")

    def _think(self, page: Page, message: Message, trains: bool) -> None:
        page.markup(THINK, trains)
        page.say(message.reasoning, trains, message.reasoning_weights)
        page.markup(THINK_END, trains)

    def read(self, text: str) -> Message:
        """A thought that was not closed is reasoning to its end."""
        opened = text.lstrip()
        if not opened.startswith(THINK):
            return Message("assistant", text)
        reasoning, _, content = opened.removeprefix(THINK).partition(THINK_END)
        return Message("assistant", content, reasoning=reasoning)
