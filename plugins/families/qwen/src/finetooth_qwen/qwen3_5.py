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

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal

from finetooth_hooks import Conversation, Message, Options, RecipeError, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.protocols import Renderer, Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.parameter_calls import (
    INSTRUCTIONS,
    Value,
    json_value,
    plain_value,
    reads_back,
    split_calls,
    write_call,
)
from finetooth_rendering.tool_calls import function_call
from finetooth_rendering.turns import json_text, noted, split_thought, trimmed
from finetooth_toolbox.messages.chat_templates import render_template

from finetooth_qwen.renderer import END, START, THINK, THINK_END, Qwen, Qwen3
from finetooth_qwen.thinking import Thought, last_query, trimmed_thought

TOOLS_BEFORE = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
Version = Literal["3.5", "3.6", "3.8"]
Effort = Literal["xhigh", "medium", "low"]
EFFORTS: Mapping[Effort, str] = {
    "xhigh": "Reasoning effort is set to xhigh. Please think carefully through the task, validate key assumptions, "
    "consider plausible alternatives, and prioritize correctness, consistency, and clarity in the final answer.",
    "medium": "",
    "low": "Reasoning effort is set to low. Keep your thinking brief and focused, moving directly to the conclusion "
    "without unnecessary elaboration.",
}
"""With what the system message of Qwen3.8 begins while it thinks."""
CALLING: tuple[Mapping[str, Any], ...] = (
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "ask", "arguments": {"sure": True}}}]},
)
"""A conversation by which versions are told from each other."""


class Qwen35Options(Options):
    """Options of `qwen3_5`."""

    thinking: Literal["auto"] | bool = "auto"
    """Whether the model thinks before it answers: the prompt for an answer opens a think block, or if false holds an
    empty one, as with the template's `enable_thinking`. With false, an answer with reasoning is refused, since no
    prompt would lead to it. `auto` follows the model's own template: the small models (up to 2B) do not think."""
    keep_reasoning: Literal["auto"] | bool = "auto"
    """Write every answer with its think block, not only those after the last question, as with `preserve_thinking` of
    Qwen3.6 and 3.8. Reasoning of earlier turns then trains too, and the text so far never changes as the conversation
    grows. `auto` does so for 3.8, like its template."""
    version: Literal["auto", "3.5", "3.6", "3.8"] = "auto"
    """How to write arguments of calls that are not text, numbers, lists or objects: as `True` and `None` (3.5) or
    `true` and `null` (3.6, 3.8). 3.8 also tells the model how much to think. `auto` follows the model's own
    template."""
    effort: Literal["auto"] | Effort = "auto"
    """How much Qwen3.8 is told to think, as with `reasoning_effort`; `auto` is `xhigh`, as in its template."""


def build(options: Qwen35Options, context: Context) -> Qwen35:
    """Builds the renderer; `auto` options follow the tokenizer's chat template.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """
    own = context.tokenizer.chat_template
    thinking = _thinks(own) if options.thinking == "auto" else options.thinking
    version = _version(own) if options.version == "auto" else options.version
    newest = version == "3.8"
    if options.effort != "auto" and not (newest and thinking):
        raise RecipeError(
            "data.renderer.effort",
            "only Qwen3.8 is told how much to think, and only while it thinks",
            action="remove it, or set version: '3.8' and leave thinking on",
        )
    keeps = newest if options.keep_reasoning == "auto" else options.keep_reasoning
    effort: Effort = "xhigh" if options.effort == "auto" else options.effort
    renderer = Qwen35(context.tokenizer, thinking=thinking, keep_reasoning=keeps, version=version, effort=effort)
    told: dict[str, Any] = {"enable_thinking": thinking}
    if newest:
        told |= {"reasoning_effort": effort, "preserve_thinking": keeps}
    if own is not None and keeps in (False, newest):
        pick = {"name": "jinja", "arguments": told}
        renderer.seeing = cache(partial(context.build, "renderer", pick, setting="data.renderer"))
    if keeps and not newest:
        return renderer  # it differs on purpose
    return noted(renderer, context, **told)


def write_calls(
    renderer: Qwen, page: Page, message: Message, trains: bool, where: str, value: Value, before: str
) -> None:
    """The calls of a message.

    Args:
        value: how arguments are written.
        before: stands before the first.

    Raises:
        DataError: a call that could not be read back as it is.
    """
    for raw_call in message.tool_calls:
        call = function_call(raw_call, where)
        if not reads_back(call, value):
            spelled = f"{call.name} with {dict(call.arguments)!r:.80}"
            raise renderer.refuse(f"no markup for a call that spells its markup and ends early: {spelled}", where)
        page.markup(before, trains)
        write_call(page, call, value, trains)
        before = "\n"


def _thinks(template: str | None) -> bool:
    prompt = None if template is None else render_template(template, CALLING[:1], prompt=True)
    return prompt is None or not prompt.rstrip().endswith(THINK_END)


def _version(template: str | None) -> Version:
    called = None if template is None else render_template(template, CALLING)
    if called is not None and EFFORTS["xhigh"] in called:
        return "3.8"
    return "3.6" if called is not None and "\ntrue\n" in called else "3.5"


class Qwen35(Qwen3):
    """Qwen3.5, 3.6 and 3.8, which think before they answer, or not.

    Normalisation: blanks around contents and reasoning go. A think block that stands in the content is taken as its
    reasoning. Answers before the last question lose their reasoning and the think block, unless `keep_reasoning`; what
    is dropped does not train, and is counted (`Rendered.remarks`). Calls lose their ids; a text among their arguments
    that reads as another JSON value comes back as that value.

    Args:
        thinking: the prompt opens a think block; else it has closed it.
        keep_reasoning: every answer has its think block.
        version: how values are written, and whether the model is told how much to think.
        effort: how much that is.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """

    name = "qwen3_5"
    opened = True
    seeing: Callable[[], Renderer] | None = None
    """Gives what writes conversations with images: the model's own template, which writes the same text."""

    def __init__(
        self, tokenizer: Tokenizer, *, thinking: bool = True, keep_reasoning: bool = False, version: Version = "3.5",
        effort: Effort = "xhigh",
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, thinking=thinking, keep_reasoning=keep_reasoning)
        self._newest = version == "3.8"
        self._effort = EFFORTS[effort] if self._newest and thinking else ""
        self._words = version == "3.5"
        self._value = plain_value if self._words else json_value

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        if (by := self._by_template(conversation.messages)) is not None:
            return by.render(conversation, train_on=train_on)
        return super().render(conversation, train_on=train_on)

    def shown_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        by = self._by_template(messages)
        return super().shown_prompt(messages, tools) if by is None else by.shown_prompt(messages, tools)

    def _by_template(self, messages: Sequence[Message]) -> Renderer | None:
        return self.seeing() if self.seeing is not None and any(message.media for message in messages) else None

    def read(self, text: str) -> Message:
        if self._thinking and not text.lstrip().startswith(THINK):
            text = THINK + text  # the prompt has opened it
        reasoning, rest = split_thought(text, THINK, THINK_END)
        content, calls = split_calls(rest, words=self._words)
        return Message("assistant", content.strip(), reasoning=reasoning.strip(), tool_calls=calls)

    def _open(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> None:
        messages, tools = conversation.messages, conversation.tools
        own = messages[0] if messages and messages[0].role == "system" else None
        says = own is not None and (bool(own.content.strip()) or not self._newest)
        if not (says or tools or self._effort):
            if own is not None:
                page.message()
            return
        trains = own is not None and trained[0]
        if own is not None:
            page.message()
        page.markup(f"{START}system\n" + self._effort + "\n\n" * bool(self._effort and (tools or says)))
        if tools:
            page.markup(TOOLS_BEFORE)
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
        write_calls(self, page, message, trains, where, self._value, "\n\n" if content else "")

    def _ask(self, page: Page) -> None:
        page.markup(f"{START}assistant\n{THINK}\n" + ("" if self._thinking else f"\n{THINK_END}\n\n"))

    def _check(self, conversation: Conversation) -> None:
        super()._check(conversation)
        for i, message in enumerate(conversation.messages):
            if message.role == "system" and i:
                raise self.refuse("a system message only at the beginning", f"messages[{i}]", "move it there")
