"""The renderer `llama2`.

    <s>[INST] <<SYS>>
    Be brief.
    <</SYS>>

    Hello? [/INST] Yes. </s><s>[INST] Sure? [/INST] Quite. </s>

A trained answer trains its content with the blanks before and after it, and its `</s>`. Text that spells `<s>` or
`</s>` stays plain text; `[INST]` and `<<SYS>>` are text for the model too.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_rendering.page import Page
from finetooth_rendering.turns import TurnRenderer, noted, trimmed

BEGIN, END = "<s>", "</s>"
SPEAKERS = ("system", "user", "assistant", "tool")
"""For the last the error says that it does not alternate."""


class Llama2Options(Options):
    """No options."""


def build(options: Llama2Options, context: Context) -> Llama2:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no `<s>` and `</s>`.
    """
    return noted(Llama2(context.tokenizer), context)


class Llama2(TurnRenderer):
    """Llama 2 markup for text conversations.

    Normalisation: contents are trimmed; of a first question after a system message only the end is. Roles alternate.

    Raises:
        RecipeError: the tokenizer has no `<s>` and `</s>`.
    """

    name = "llama2"
    controls = (BEGIN, END)
    stops = (END,)
    extension = True

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; the system message ends where the question begins whose
        frame it shares.

        Raises:
            DataError: tools, calls, reasoning, another role, or roles that do not alternate.
        """
        messages = conversation.messages
        self._check(conversation)
        system = bool(messages) and messages[0].role == "system"
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            page.message()
            if message.role == "system":
                page.markup(f"{BEGIN}[INST] <<SYS>>\n")
                page.say(message.content, trains, message.weights, cut=trimmed(message.content))
                page.markup("\n<</SYS>>")
            elif message.role == "user":
                self._question(page, message, trains, after_system=system and i == 1)
            else:
                page.markup(" ", trains)
                page.say(message.content, trains, message.weights, cut=trimmed(message.content))
                page.markup(f" {END}", trains)

    def read(self, text: str) -> Message:
        return Message("assistant", text.strip())

    def _question(self, page: Page, message: Message, trains: bool, *, after_system: bool) -> None:
        begin, end = trimmed(message.content)
        if after_system:
            page.markup("\n\n" if begin < end else "")  # the whole is trimmed, and ends with the system message then
            begin = 0 if begin < end else end
        else:
            page.markup(f"{BEGIN}[INST] ")
        page.say(message.content, trains, message.weights, cut=(begin, end))
        page.markup(" [/INST]")

    def _check(self, conversation: Conversation) -> None:
        messages = conversation.messages
        self.check_texts(conversation, SPEAKERS)
        own = int(bool(messages) and messages[0].role == "system")
        if own and len(messages) == 1:
            raise self.refuse("a system message only in the first message of the user, and there is none", "messages")
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            expected = ("user", "assistant")[(i - own) % 2]
            if i >= own and message.role != expected:
                raise self.refuse(
                    f"user and assistant in turns; here it has {message.role!r} where {expected!r} stands",
                    where,
                    "join or remove messages, or set another data.renderer",
                )
