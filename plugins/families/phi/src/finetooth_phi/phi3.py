"""The renderer `phi3`.

    <|user|>
    Hello?<|end|>
    <|assistant|>
    Yes.<|end|>
    <|endoftext|>

A trained message trains its content and its `<|end|>`; headers, line feeds after `<|end|>` and the `<|endoftext|>` that
closes a conversation never train. Text that spells a special token stays plain text.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Conversation, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import TurnRenderer, noted

END, DOCUMENT_END = "<|end|>", "<|endoftext|>"


class Phi3Options(Options):
    """Options of `phi3`."""

    empty_system: bool = True
    """Write an empty system message, as Phi-3 does; Phi-3.5 leaves it out."""


def build(options: Phi3Options, context: Context) -> Phi3:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no Phi-3 tokens.
    """
    return noted(Phi3(context.tokenizer, empty_system=options.empty_system), context)


class Phi3(TurnRenderer):
    """Phi-3 markup for text conversations.

    Normalisation: the control tokens of Phi-3's own tokenizer swallow all blanks that follow them, so there a content
    loses those at its beginning.

    Args:
        empty_system: write a system message that is empty.

    Raises:
        RecipeError: the tokenizer has no Phi-3 tokens.
    """

    name = "phi3"
    controls = ("<|system|>", "<|user|>", "<|assistant|>", END, DOCUMENT_END)
    stops = (END, DOCUMENT_END)
    extension = True

    def __init__(self, tokenizer: Tokenizer, *, empty_system: bool = True) -> None:
        super().__init__(tokenizer)
        self._empty_system = empty_system

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; the last one has the closing `<|endoftext|>`.

        Raises:
            DataError: tools, tool calls, reasoning or a role this renderer cannot say.
        """
        self.check_texts(conversation)
        for message, trains in zip(conversation.messages, trained, strict=True):
            page.message()
            if message.role == "system" and not message.content and not self._empty_system:
                continue
            page.markup(f"<|{message.role}|>\n")
            page.say(message.content, trains, message.weights)
            page.markup(END, trains)
            page.markup("\n")
        page.markup("<|assistant|>\n" if ask else DOCUMENT_END)
