"""The renderer `qwen3_5`.

    <|im_start|>user
    Hello?<|im_end|>
    <|im_start|>assistant
    <think>
    A greeting.
    </think>

    Yes.

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
    </tool_response><|im_end|>

The prompt for an answer opens the think block, `<think>` and a line feed, or holds an empty one; neither trains. A
trained answer trains what follows: its reasoning, `</think>`, its content and calls, and `<|im_end|>`. Of an empty
think block that a thinking model closes at once, the line feeds are one token with the prompt's, and do not train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.parameter_calls import (
    INSTRUCTIONS,
    json_value,
    plain_value,
    reads_back,
    split_calls,
    write_call,
)
from finetooth_rendering.tool_calls import function_call
from finetooth_rendering.turns import json_text, split_thought, trimmed
from finetooth_toolbox.messages.chat_templates import render_template

from finetooth_qwen.renderer import END, START, THINK, THINK_END, Qwen3, with_note
from finetooth_qwen.thinking import Thought, last_query, trimmed_thought

Version = Literal["3.5", "3.6"]
CALLING: tuple[Mapping[str, Any], ...] = (
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "ask", "arguments": {"sure": True}}}]},
)
"""A conversation by which 3.6 is told from 3.5."""


class Qwen35Options(Options):
    """Options of `qwen3_5`."""

    thinking: Literal["auto"] | bool = "auto"
    """Ask for answers that think first: the prompt for an answer opens a think block, or, if false, holds an empty one,
    as with the template's `enable_thinking`, and an answer with reasoning is refused: it would never be asked for.
    `auto` does as the model's own template: the small models (up to 2B) do not think."""
    keep_reasoning: bool = False
    """Write every answer with its think block, not only those after the last question, as with Qwen3.6's
    `preserve_thinking`: then reasoning of earlier turns trains too, and what is written never changes as the
    conversation grows."""
    version: Literal["auto", "3.5", "3.6"] = "auto"
    """How arguments of calls are written that are neither text nor numbers, lists or objects: `True` and `None` (3.5)
    or `true` and `null` (3.6). `auto` does as the model's own template."""


def build(options: Qwen35Options, context: Context) -> Qwen35:
    """Builds the renderer; `auto` options follow the tokenizer's chat template.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """
    own = context.tokenizer.chat_template
    thinking = _thinks(own) if options.thinking == "auto" else options.thinking
    version = _version(own) if options.version == "auto" else options.version
    renderer = Qwen35(context.tokenizer, thinking=thinking, keep_reasoning=options.keep_reasoning, version=version)
    return renderer if options.keep_reasoning else with_note(renderer, context)  # the former differs on purpose


def _thinks(template: str | None) -> bool:
    prompt = None if template is None else render_template(template, CALLING[:1], prompt=True)
    return prompt is None or not prompt.rstrip().endswith(THINK_END)


def _version(template: str | None) -> Version:
    called = None if template is None else render_template(template, CALLING)
    return "3.6" if called is not None and "\ntrue\n" in called else "3.5"


class Qwen35(Qwen3):
    """Qwen3.5 and 3.6, which think before they answer, or not.

    Normalisation: blanks around contents and reasoning go. A think block that stands in the content is taken as its
    reasoning. Answers before the last question lose their reasoning and the think block, unless `keep_reasoning`; what
    is dropped does not train, and is counted (`Rendered.remarks`). Calls lose their ids; a text among their arguments
    that reads as another JSON value comes back as that value.

    Args:
        thinking: the prompt opens a think block; else it has closed it.
        keep_reasoning: every answer has its think block.
        version: how values are written.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """

    name = "qwen3_5"
    opened = True

    def __init__(
        self, tokenizer: Tokenizer, *, thinking: bool = True, keep_reasoning: bool = False, version: Version = "3.5"
    ) -> None:
        super().__init__(tokenizer, thinking=thinking, keep_reasoning=keep_reasoning)
        self._words = version == "3.5"
        self._value = plain_value if self._words else json_value

    def read(self, text: str) -> Message:
        if self._thinking and not text.lstrip().startswith(THINK):
            text = THINK + text  # the prompt has opened it
        reasoning, rest = split_thought(text, THINK, THINK_END)
        content, calls = split_calls(rest, words=self._words)
        return Message("assistant", content.strip(), reasoning=reasoning.strip(), tool_calls=calls)

    def _open(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> None:
        messages, tools = conversation.messages, conversation.tools
        own = messages[0] if messages and messages[0].role == "system" else None
        if own is None and not tools:
            return
        trains = own is not None and trained[0]
        if own is not None:
            page.message()
        page.markup(f"{START}system\n")
        if tools:
            page.markup("# Tools\n\nYou have access to the following functions:\n\n<tools>")
            for tool in tools:
                page.say("\n" + json_text(tool))
            page.markup("\n</tools>" + INSTRUCTIONS)
        if own is not None:
            page.markup("\n\n" if tools and own.content.strip() else "")
            self._say(page, own, trains)
        page.markup(END, trains)
        page.markup("\n")

    def _say(self, page: Page, message: Message, trains: bool) -> None:
        page.say(message.content, trains, message.weights, cut=trimmed(message.content))

    def _thought(self, message: Message) -> Thought:
        return trimmed_thought(message)

    def _blocks(self, messages: Sequence[Message]) -> Sequence[bool]:
        query = last_query(messages, trim=True)
        return [self._keeps or i > query for i in range(len(messages))]

    def _calls(self, page: Page, message: Message, trains: bool, where: str, *, content: bool | None = None) -> None:
        between = "\n\n" if content else ""
        for raw_call in message.tool_calls:
            call = function_call(raw_call, where)
            if not reads_back(call, self._value):
                spelled = f"{call.name} with {dict(call.arguments)!r:.80}"
                raise self.refuse(f"no way to say a call that spells its markup and ends early: {spelled}", where)
            page.markup(between, trains)
            write_call(page, call, self._value, trains)
            between = "\n"

    def _ask(self, page: Page) -> None:
        page.markup(f"{START}assistant\n{THINK}\n" + ("" if self._thinking else f"\n{THINK_END}\n\n"))

    def _check(self, conversation: Conversation) -> None:
        super()._check(conversation)
        for i, message in enumerate(conversation.messages):
            if message.role == "system" and i:
                raise self.refuse("a system message only at the beginning", f"messages[{i}]", "move it there")
