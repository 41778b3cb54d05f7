# the bars of these tokens are wide ones
"""The renderer `deepseek_v3_1`.

    <｜begin▁of▁sentence｜>You are ...<｜User｜>Hello?<｜Assistant｜><think></think>Yes.<｜end▁of▁sentence｜>

A trained message trains what stands behind its think block and `<｜end▁of▁sentence｜>`: content and tool calls; with
`thinking` also the reasoning and the `</think>` after it, since the prompt only opens the block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetooth_hooks import Conversation, Message
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import json_text, last_question, noted

from finetooth_deepseek import markup as m
from finetooth_deepseek.thinking import ThinkingOptions, ThinkingTurns, whole_content

_CALL = re.compile(rf"{m.CALL}(?P<name>[^\n]*?){m.SEPARATOR}(?P<arguments>.*?){m.CALL_END}", re.DOTALL)


class DeepSeekV31Options(ThinkingOptions):
    """Options of `deepseek_v3_1`."""


def build(options: DeepSeekV31Options, context: Context) -> DeepSeekV31:
    """Builds the renderer of DeepSeek V3.1, and notes where the chat template differs.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """
    theirs = DeepSeekV31(context.tokenizer, DeepSeekV31Options())  # the template writes no reasoning
    return noted(DeepSeekV31(context.tokenizer, options), context, theirs)


class DeepSeekV31(ThinkingTurns):
    """DeepSeek V3.1.

    Normalisation: what stands before the first `</think>` that a content spells is its reasoning, unless it has calls
    or follows a tool. Reasoning is written with `thinking` only, and there for answers that follow a question; the
    model's own template leaves out all of it. Schemas of tools are never written. All that is left out is counted
    (`Rendered.remarks`).

    Args:
        options: what differs between conversations.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """

    name = "deepseek_v3_1"
    splits_last = False

    def __init__(self, tokenizer: Tokenizer, options: DeepSeekV31Options) -> None:
        super().__init__(tokenizer, options)
        self.extension = options.keep_reasoning or not options.thinking

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; what stands before the first message belongs to none.

        Raises:
            DataError: a system message where it cannot stand.
        """
        messages = conversation.messages
        page.markup(m.BEGIN)
        first, last = m.systems(messages), last_question(messages)
        m.write_system(page, messages[:first], trained[:first])
        open_question = False
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if i < first:
                continue
            page.message()
            if message.role == "user":
                page.markup(m.USER)
                page.say(message.content, trains, message.weights)
                open_question = True
            elif message.role == "tool":
                page.markup(m.OUTPUT)
                page.say(message.content, trains, message.weights)
                page.markup(m.OUTPUT_END, trains)
                open_question = False
            elif message.role == "assistant":
                thinks = open_question and self.thinks(i, last)
                if open_question:
                    self._open(page, message, trains, thinks, f"messages[{i}]")
                whole = not thinks and whole_content(conversation, i)
                self._answer(page, message, trains, whole, f"messages[{i}]")
                open_question = False
            else:
                after = "system message after another message" if message.role == "system" else f"role {message.role!r}"
                raise self.refuse(f"no {after}", f"messages[{i}]")
        if ask and open_question:
            page.markup(m.ASSISTANT + m.THINK + ("" if self._thinking else m.THOUGHT))

    def read(self, text: str) -> Message:
        """The message that a completion says; with `thinking`, reasoning ends at the first `</think>`.

        Without one all is content: behind the outputs of tools no prompt opens a think block.
        """
        reasoning = ""
        if self._thinking and m.THOUGHT in text:
            reasoning, _, text = text.partition(m.THOUGHT)
        content, calls = m.read_calls(text, _CALL)
        return Message("assistant", content, reasoning=reasoning, tool_calls=calls)

    def _open(self, page: Page, message: Message, trains: bool, thinks: bool, where: str) -> None:
        """`<｜Assistant｜>` and a think block, empty if the message does not think.

        Raises:
            DataError: the reasoning holds another think block.
        """
        page.markup(m.ASSISTANT + m.THINK)
        if thinks:
            text, weights, cut = self.written_thought(message, where)
            page.say(text, trains, weights, cut=cut)
        page.markup(m.THOUGHT, trains and thinks)

    def _answer(self, page: Page, message: Message, trains: bool, whole: bool, where: str) -> None:
        """
        Args:
            whole: the content as it is, not only what stands behind a `</think>`.
        """
        cut = None if whole else self.thought_of(message).content
        page.say(message.content, trains, message.weights, cut=cut)
        if message.tool_calls:
            page.markup(m.CALLS, trains)
            for call in message.tool_calls:
                name, arguments = m.function_of(call, where)
                page.markup(m.CALL, trains)
                page.say(name, trains)
                page.markup(m.SEPARATOR, trains)
                page.say(json_text(arguments), trains)
                page.markup(m.CALL_END, trains)
            page.markup(m.CALLS_END, trains)
        page.markup(m.END, trains)
