"""The renderer `qwen3_coder`.

    <|im_start|>user
    The time?<|im_end|>
    <|im_start|>assistant
    I look.

    <tool_call>
    <function=clock>
    <parameter=zone>
    UTC
    </parameter>
    </function>
    </tool_call><|im_end|>
    <|im_start|>user
    <tool_response>
    12:00
    </tool_response>
    <|im_end|>

Qwen3-Coder does not think. What trains is as in `qwen3_instruct`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Message, Options
from finetooth_hooks.context import Context
from finetooth_rendering.page import Page
from finetooth_rendering.parameter_calls import INSTRUCTIONS, described, plain_value, split_calls
from finetooth_rendering.turns import noted, trimmed

from finetooth_qwen.qwen3_5 import TOOLS_BEFORE, write_calls
from finetooth_qwen.renderer import END, RESULT, RESULT_END, START, Qwen3Instruct

UNASKED = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."
"""The system message of a conversation with tools that has none."""


class Qwen3CoderOptions(Options):
    """Options of `qwen3_coder`: none."""


def build(options: Qwen3CoderOptions, context: Context) -> Qwen3Coder:
    """Builds the renderer of Qwen3-Coder, and notes where the chat template differs.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """
    return noted(Qwen3Coder(context.tokenizer), context)


class Qwen3Coder(Qwen3Instruct):
    """Qwen3-Coder.

    Normalisation: blanks around a content next to calls go. Calls lose their ids; a text among their arguments that
    reads as another JSON value comes back as that value. Tools without a system message get one.
    """

    name = "qwen3_coder"
    system_for_tools = UNASKED

    def read(self, text: str) -> Message:
        content, calls = split_calls(text, words=True)
        return Message("assistant", content, tool_calls=calls)

    def _list_tools(self, page: Page, tools: Sequence[Mapping[str, Any]], *, system: bool) -> None:
        page.markup(f"\n\n{TOOLS_BEFORE}")
        for tool in tools:
            page.say(described(tool, reordered=False))
        page.markup("\n</tools>" + INSTRUCTIONS)

    def _result(self, page: Page, message: Message, trains: bool, *, first: bool, last: bool) -> None:
        page.markup(f"{START}user\n" * first + f"{RESULT}\n")
        self._say(page, message, trains)
        page.markup(f"\n{RESULT_END}\n")
        if last:
            page.markup(END, trains)
            page.markup("\n")

    def _answer(self, page: Page, message: Message, trains: bool, where: str, *, block: bool) -> None:
        content = message.content
        cut = trimmed(content) if message.tool_calls else (0, len(content))
        page.say(content, trains, message.weights, cut=cut)
        write_calls(self, page, message, trains, where, plain_value, "\n\n" if content.strip() else "")
