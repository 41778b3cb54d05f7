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

from collections.abc import Sequence

from finetooth_hooks import Conversation, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import TurnRenderer, noted
from finetooth_toolbox.messages.chat_templates import chatml_system

START, END, DOCUMENT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TOOLS = "remove them, or set data.renderer: hermes, which writes tools in ChatML"


class ChatMLOptions(Options):
    """Options of `chatml`."""

    default_system: str | None = "auto"
    """System message for conversations without one. `auto` takes the one that the model's own chat template adds; null
    adds none."""


def build(options: ChatMLOptions, context: Context) -> ChatML:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """
    own = context.tokenizer.chat_template
    system = chatml_system(own) if options.default_system == "auto" else options.default_system or ""
    return noted(ChatML(context.tokenizer, system), context)


class ChatML(TurnRenderer):
    """ChatML for text conversations.

    Normalisation: none.

    Args:
        default_system: content of the system message of a conversation that begins without one; empty adds none.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """

    name = "chatml"
    controls = (START, END)
    optional = (DOCUMENT_END,)
    stops = (END, DOCUMENT_END)
    extension = True

    def __init__(self, tokenizer: Tokenizer, default_system: str = "") -> None:
        super().__init__(tokenizer)
        self._default_system = default_system

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message, from `<|im_start|>` to the line feed after `<|im_end|>`; a
        default system message stands before the first of them.

        Raises:
            DataError: tools, tool calls, reasoning or a role chatml cannot say.
        """
        messages = conversation.messages
        self.check_texts(conversation, for_tools=TOOLS)
        if self._default_system and (not messages or messages[0].role != "system"):
            page.markup(f"{START}system\n")
            page.say(self._default_system)
            page.markup(f"{END}\n")
        for message, trains in zip(messages, trained, strict=True):
            page.message()
            page.markup(f"{START}{message.role}\n")
            page.say(message.content, trains, message.weights)
            page.markup(END, trains)
            page.markup("\n")
        if ask:
            page.markup(f"{START}assistant\n")
