"""The renderers `qwen`, `qwen3` and `qwen3_instruct`.

    <|im_start|>system
    You are ...<|im_end|>
    <|im_start|>user
    Hello?<|im_end|>
    <|im_start|>assistant
    <think>
    A greeting.
    </think>

    Yes.
    <tool_call>
    {"name": "clock", "arguments": {}}
    </tool_call><|im_end|>
    <|im_start|>user
    <tool_response>
    12:00
    </tool_response><|im_end|>

A trained assistant message trains everything between the prompt for it, `<|im_start|>assistant` and a line feed, and
its `<|im_end|>`, that token included. What the prompt already holds (the empty think block of `thinking: false`) does
not train, nor does the line feed after `<|im_end|>`. Text that spells a special token stays plain text; `<think>` and
`<tool_call>` are plain tokens in Qwen's vocabularies, so a text that spells them becomes them, as with the official
template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from finetooth_hooks import Conversation, Message, Options, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import function_call, tagged_calls
from finetooth_rendering.turns import TurnRenderer, json_text, noted, split_thought
from finetooth_toolbox.messages.chat_templates import chatml_system

from finetooth_qwen.thinking import Thought, last_query, thought_of

START, END, DOCUMENT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END, RESULT, RESULT_END = "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"
ROLES = ("system", "user", "assistant", "tool")
LEFT_OUT = "reasoning left out"


TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


class QwenOptions(Options):
    """Options of `qwen`."""

    default_system: str | None = "auto"
    """System message for conversations without one. `auto` takes the one that the model's own chat template adds, which
    differs between Qwen2, Qwen2.5 and their variants; null adds none."""


class Qwen3Options(Options):
    """Options of `qwen3`."""

    thinking: bool = True
    """Whether the model thinks before it answers. If false, the prompt for an answer holds an empty think block, as
    with the template's `enable_thinking=False`, and an answer with reasoning is refused, since no prompt would lead to
    it."""
    keep_reasoning: bool = False
    """Write every assistant message with its think block, not only those after the last question. Reasoning of
    earlier turns then trains too, and the text so far never changes as the conversation grows. The official template
    drops it."""


class Qwen3InstructOptions(Options):
    """Options of `qwen3_instruct`: none."""


def build(options: QwenOptions, context: Context) -> Qwen:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """
    own = context.tokenizer.chat_template
    system = chatml_system(own) if options.default_system == "auto" else options.default_system or ""
    return noted(Qwen(context.tokenizer, system), context)


def build_qwen3(options: Qwen3Options, context: Context) -> Qwen3:
    """Builds the renderer of Qwen3, and notes where the chat template differs.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """
    renderer = Qwen3(context.tokenizer, thinking=options.thinking, keep_reasoning=options.keep_reasoning)
    if not options.keep_reasoning:  # else it differs on purpose
        noted(renderer, context, enable_thinking=options.thinking)
    return renderer


def build_qwen3_instruct(options: Qwen3InstructOptions, context: Context) -> Qwen3Instruct:
    """Builds the renderer of Qwen3-Instruct, and notes where the chat template differs.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """
    return noted(Qwen3Instruct(context.tokenizer), context)


class Qwen(TurnRenderer):
    """Qwen2, Qwen2.5, and the text of Qwen2.5-VL.

    Normalisation: none; calls lose their ids, for which the markup has no place.

    Args:
        default_system: content of the system message of a conversation that begins without one; empty adds none.

    Raises:
        RecipeError: the tokenizer has no Qwen tokens.
    """

    name = "qwen"
    controls = (START, END)
    optional = (DOCUMENT_END, THINK, THINK_END, CALL, CALL_END, RESULT, RESULT_END)
    stops = (END, DOCUMENT_END)
    extension = True
    joins_tools: ClassVar[bool] = True
    """An empty line stands before the tools, even where no system message does."""
    system_for_tools: ClassVar[str] = ""
    """The system message of a conversation with tools that has none."""

    def __init__(self, tokenizer: Tokenizer, default_system: str = "") -> None:
        super().__init__(tokenizer)
        self._default_system = default_system

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message, from `<|im_start|>` to the line feed after `<|im_end|>`;
        results that follow each other share one frame. A system message that is added stands before the first range.

        Raises:
            DataError: a role this family does not have, reasoning where it has none, a call that is not of OpenAI's
                shape.
        """
        messages = conversation.messages
        self._check(conversation)
        self._open(page, conversation, trained)
        blocks = self._blocks(messages)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if i == 0 and message.role == "system":
                continue
            page.message()
            if message.role == "tool":
                first = i == 0 or messages[i - 1].role != "tool"
                last = i + 1 == len(messages) or messages[i + 1].role != "tool"
                self._result(page, message, trains, first=first, last=last)
                continue
            page.markup(f"{START}{message.role}\n")
            if message.role == "assistant":
                self._answer(page, message, trains, f"messages[{i}]", block=blocks[i])
            else:
                self._say(page, message, trains)
            page.markup(END, trains)
            page.markup("\n")
        if ask:
            self._ask(page)

    def read(self, text: str) -> Message:
        content, calls = tagged_calls(text, CALL, CALL_END)
        return Message("assistant", content, tool_calls=calls)

    def _open(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> None:
        """The system message with the tools, as far as there are any."""
        messages, tools = conversation.messages, conversation.tools
        own = messages[0] if messages and messages[0].role == "system" else None
        default = self._default_system or self.system_for_tools * bool(tools)
        if own is None and not tools and not default:
            return
        trains = own is not None and trained[0]
        if own is not None:
            page.message()
        page.markup(f"{START}system\n")
        if own is not None:
            page.say(own.content, trains, own.weights)
        else:
            page.say(default)
        if tools:
            self._list_tools(page, tools, system=own is not None)
        page.markup(END, trains)
        page.markup("\n")

    def _list_tools(self, page: Page, tools: Sequence[Mapping[str, Any]], *, system: bool) -> None:
        page.markup("\n\n" * (system or self.joins_tools) + TOOLS_BEFORE)
        for tool in tools:
            page.say("\n" + json_text(tool))
        page.markup(TOOLS_AFTER)

    def _blocks(self, messages: Sequence[Message]) -> Sequence[bool]:
        """Which messages have a think block."""
        return [False] * len(messages)

    def _say(self, page: Page, message: Message, trains: bool) -> None:
        """What somebody else than the assistant says."""
        page.say(message.content, trains, message.weights)

    def _result(self, page: Page, message: Message, trains: bool, *, first: bool, last: bool) -> None:
        if first:
            page.markup(f"{START}user")
        page.markup(f"\n{RESULT}\n")
        self._say(page, message, trains)
        page.markup(f"\n{RESULT_END}")
        if last:
            page.markup(END, trains)
            page.markup("\n")

    def _answer(self, page: Page, message: Message, trains: bool, where: str, *, block: bool) -> None:
        """Between the header of an assistant message and its end.

        Args:
            block: it has a think block.
        """
        page.say(message.content, trains, message.weights)
        self._calls(page, message, trains, where)

    def _calls(self, page: Page, message: Message, trains: bool, where: str, *, content: bool | None = None) -> None:
        after = bool(message.content) if content is None else content
        for call in message.tool_calls:
            name, arguments = function_call(call, where)
            page.markup("\n" * after + f'{CALL}\n{{"name": "', trains)
            page.say(name, trains)
            page.markup('", "arguments": ', trains)
            page.say(json_text(arguments), trains)
            page.markup(f"}}\n{CALL_END}", trains)
            after = True

    def _ask(self, page: Page) -> None:
        page.markup(f"{START}assistant\n")

    def _check(self, conversation: Conversation) -> None:
        self.check_texts(conversation, ROLES, calls=True)


class Qwen3Instruct(Qwen):
    """Qwen3-Instruct-2507, which does not think; no system message is added.

    Normalisation: none; calls lose their ids.
    """

    name = "qwen3_instruct"
    joins_tools = False


class Qwen3(Qwen3Instruct):
    """Qwen3, which thinks before it answers.

    Normalisation: line feeds around reasoning go, as do those before the content that follows a think block. A think
    block that stands in the content is taken as its reasoning. Assistant messages before the last question lose their
    reasoning and the think block (which is empty without reasoning), as do those without reasoning that
    are followed by results; `keep_reasoning` writes the block always. What is dropped does not train, and is counted
    (`Rendered.remarks`). Calls lose their ids.

    An empty think block trains where the model has to write it itself, so unless `thinking` is false. Then the prompt
    has closed the block, and reasoning that would be written is refused; that of earlier turns is left out as ever.

    Args:
        thinking: the prompt leaves it to the model to think.
        keep_reasoning: every assistant message has its think block.
    """

    name = "qwen3"
    extension = False
    opened: ClassVar[bool] = False
    """The prompt opens the think block, so that its first line does not train."""

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool = True, keep_reasoning: bool = False) -> None:
        super().__init__(tokenizer)
        self._thinking, self._keeps = thinking, keep_reasoning
        self.extension = keep_reasoning

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        rendered = super().render(conversation, train_on=train_on)
        messages = conversation.messages
        dropped = [message for message, block in zip(messages, self._blocks(messages), strict=True) if not block]
        lost = any(message.role == "assistant" and self._thought(message).present for message in dropped)
        return replace(rendered, remarks=(*rendered.remarks, LEFT_OUT)) if lost else rendered

    def read(self, text: str) -> Message:
        reasoning, rest = split_thought(text)
        content, calls = tagged_calls(rest, CALL, CALL_END)
        return Message("assistant", content, reasoning=reasoning, tool_calls=calls)

    def _answer(self, page: Page, message: Message, trains: bool, where: str, *, block: bool) -> None:
        thought = self._thought(message)
        if block and thought.says and not self._thinking:
            raise self.refuse("no reasoning while thinking is off", where, "remove it, or set thinking: true")
        if block:
            self._think(page, message, thought, trains)
        page.say(message.content, trains, message.weights, cut=thought.stripped if block else thought.content)
        self._calls(page, message, trains, where, content=thought.has_content)

    def _thought(self, message: Message) -> Thought:
        return thought_of(message)

    def _blocks(self, messages: Sequence[Message]) -> Sequence[bool]:
        if self._keeps:
            return [True] * len(messages)
        query, last = last_query(messages), len(messages) - 1
        return [i > query and (i == last or thought_of(message).present) for i, message in enumerate(messages)]

    def _think(self, page: Page, message: Message, thought: Thought, trains: bool) -> None:
        block = trains and self._thinking  # an empty one is in the prompt if the model is not to think
        page.markup(f"{THINK}\n", block and not self.opened)
        if thought.inline:
            page.say(message.content, trains, message.weights, cut=thought.reasoning)
        else:
            page.say(message.reasoning, trains, message.reasoning_weights, cut=thought.reasoning)
        page.markup(f"\n{THINK_END}\n\n", block)

    def _ask(self, page: Page) -> None:
        page.markup(f"{START}assistant\n" + ("" if self._thinking else f"{THINK}\n\n{THINK_END}\n\n"))

    def _check(self, conversation: Conversation) -> None:
        self.check_texts(conversation, ROLES, reasoning=True, calls=True)
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant" and thought_of(message).lost:
                problem = "one think block, and it stands first; the content has text before it, or a second"
                raise self.refuse(problem, f"messages[{i}]")
