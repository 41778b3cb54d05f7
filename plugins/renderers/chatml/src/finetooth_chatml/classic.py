"""Renderers `zephyr`, `vicuna` and `alpaca`: markup in words; a turn ends with the tokenizer's own end-of-text token.

    zephyr                 vicuna                     alpaca
    <|user|>               <s>USER: Hello?            <s>### Instruction:
    Hello?</s>             ASSISTANT: Yes.</s>        Hello?
    <|assistant|>
    Yes.</s>                                          ### Response:
                                                      Yes.</s>

A trained answer trains what stands between the prompt for it and the end-of-text token, that token included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetooth_hooks import Conversation, Message, Options, RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import TurnRenderer, trimmed
from finetooth_toolbox.messages.chat_templates import chat_opening

PREAMBLE = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
)
WITH_INPUT = ", paired with an input that provides further context"
INPUT = "\n\n### Input:\n"
"""What stands between an instruction and its input in Alpaca's own prompts (Taori et al., 2023, Stanford Alpaca)."""


class ClassicOptions(Options):
    """No options."""


class AlpacaOptions(Options):
    """Options of `alpaca`."""

    preamble: bool = False
    """Whether a conversation without a system message begins with the sentences of Stanford Alpaca's prompts ("Below is
    an instruction that describes a task."), as axolotl's type `alpaca` does. They differ if the question has an input
    (`data.format: {name: instruction, separator: "\\n\\n### Input:\\n"}`). A beginning-of-text token is added only if
    the tokenizer itself adds one."""


def build_zephyr(options: ClassicOptions, context: Context) -> Zephyr:
    """Builds the renderer of Zephyr's markup.

    Raises:
        RecipeError: the tokenizer has no end-of-text token.
    """
    return Zephyr(context.tokenizer)


def build_vicuna(options: ClassicOptions, context: Context) -> Vicuna:
    """Builds the renderer of Vicuna's markup.

    Raises:
        RecipeError: the tokenizer has no end-of-text token.
    """
    return Vicuna(context.tokenizer)


def build_alpaca(options: AlpacaOptions, context: Context) -> Alpaca:
    """Builds the renderer of Alpaca's markup.

    Raises:
        RecipeError: the tokenizer has no end-of-text token.
    """
    return Alpaca(context.tokenizer, preamble=options.preamble)


class Classic(TurnRenderer):
    """What the three share.

    Raises:
        RecipeError: the tokenizer has no end-of-text token.
    """

    extension = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.eos_id is None:
            raise RecipeError(
                "data.renderer",
                f"the tokenizer has no end-of-text token, with which {self.name} ends an answer",
                action="set data.renderer: jinja, or another renderer of `ft plugins list`",
            )
        self.end = tokenizer.decode([tokenizer.eos_id])
        self.begin = chat_opening(tokenizer)
        # controls are this tokenizer's own
        self.controls = tuple(filter(None, (self.begin, self.end)))  # type: ignore[misc]
        self.stops = (self.end,)  # type: ignore[misc]
        super().__init__(tokenizer)

    def _alternating(self, conversation: Conversation) -> None:
        """
        Raises:
            DataError: something else than a system message or none, then user and assistant in turns.
        """
        self.check_texts(conversation)
        messages = conversation.messages
        own = int(bool(messages) and messages[0].role == "system")
        for i, message in enumerate(messages[own:]):
            expected = ("user", "assistant")[i % 2]
            if message.role != expected:
                raise self.refuse(
                    f"user and assistant in turns; here it has {message.role!r} where {expected!r} stands",
                    f"messages[{i + own}]",
                    "join or remove messages, or set data.renderer: chatml",
                )


class Zephyr(Classic):
    """Zephyr. Normalisation: contents are trimmed. Roles other than system alternate."""

    name = "zephyr"
    optional = ("<|system|>", "<|user|>", "<|assistant|>")  # plain text in Zephyr's vocabulary, tokens in some others

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """Writes a conversation in Zephyr's markup.

        Raises:
            DataError: tools, calls, reasoning, another role, or roles that do not alternate.
        """
        self._alternating(conversation)
        for message, trains in zip(conversation.messages, trained, strict=True):
            page.message()
            page.markup(f"<|{message.role}|>\n")
            _say(page, message, trains, trimmed)
            page.markup(self.end, trains)
            page.markup("\n")
        if ask:
            page.markup("<|assistant|>\n")


class Vicuna(Classic):
    """Vicuna. Normalisation: contents are trimmed. Roles other than system alternate; a blank before an answer belongs
    to it."""

    name = "vicuna"

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """Writes a conversation in Vicuna's markup.

        Raises:
            DataError: tools, calls, reasoning, another role, or roles that do not alternate.
        """
        self._alternating(conversation)
        page.markup(self.begin)
        for message, trains in zip(conversation.messages, trained, strict=True):
            page.message()
            if message.role == "assistant":
                page.markup("ASSISTANT:")
                page.markup(" ", trains)
            elif message.role == "user":
                page.markup("USER: ")
            _say(page, message, trains, trimmed)
            if message.role == "assistant":
                page.markup(self.end, trains)
            page.markup("\n\n" if message.role == "system" else "\n")
        if ask:
            page.markup("ASSISTANT:")

    def read(self, text: str) -> Message:
        return Message("assistant", text.removeprefix(" "))


class Alpaca(Classic):
    """Alpaca. Normalisation: none. Only the first message may be a system message."""

    name = "alpaca"

    def __init__(self, tokenizer: Tokenizer, *, preamble: bool = False) -> None:
        super().__init__(tokenizer)
        self._preamble = preamble
        self._opening = "" if preamble and not tokenizer.adds_bos else self.begin

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """Writes a conversation in Alpaca's markup.

        Raises:
            DataError: tools, calls, reasoning, another role, or a system message that is not the first.
        """
        self.check_texts(conversation)
        page.markup(self._opening)
        messages = conversation.messages
        if self._preamble and messages and messages[0].role != "system":
            page.markup(PREAMBLE.format(WITH_INPUT if INPUT in messages[0].content else ""))
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if message.role == "system" and i:
                raise self.refuse("no system message but the first", f"messages[{i}]")
            page.message()
            page.markup({"user": "### Instruction:\n", "assistant": "### Response:\n"}.get(message.role, ""))
            _say(page, message, trains)
            if message.role == "assistant":
                page.markup(self.end, trains)
            if i + 1 < len(messages):
                page.markup("\n\n")
        if ask:
            page.markup("\n\n### Response:\n")


def _say(
    page: Page, message: Message, trains: bool, cut: Callable[[str], tuple[int, int]] = lambda text: (0, len(text))
) -> None:
    page.say(message.content, trains, message.weights, cut=cut(message.content))
