"""The renderer `nemotron3`.

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
    <function=clock>
    <parameter=zone>
    UTC
    </parameter>
    </function>
    </tool_call>
    <|im_end|>
    <|im_start|>user
    <tool_response>
    12:00
    </tool_response>
    <|im_end|>

The prompt for an answer opens a think block, `<think>` and a line feed, or holds an empty one, `<think></think>`. A
trained answer trains what follows: its reasoning with `</think>`, its content and calls, and `<|im_end|>`. An answer
without reasoning has the empty block that the second prompt holds, so none of the block trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from finetooth_hooks import Conversation, Message, Options, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.parameter_calls import (
    CALL,
    CALL_END,
    INSTRUCTIONS,
    described,
    plain_value,
    reads_back,
    split_calls,
    write_call,
)
from finetooth_rendering.tool_calls import function_call
from finetooth_rendering.turns import TurnRenderer, last_question, noted, split_thought, trimmed
from finetooth_toolbox.messages.chat_templates import render_template

START, END, DOCUMENT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK, THINK_END = "<think>", "</think>"
ROLES = ("system", "user", "assistant", "tool")
LEFT_OUT = "reasoning left out"

Version = Literal["nano", "ultra"]
THOUGHT = (
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Quite.", "reasoning_content": "Hm."},
)
"""A conversation by which Ultra is told from Nano."""


class Nemotron3Options(Options):
    """Options of `nemotron3`."""

    thinking: bool = False
    """Whether the prompt for an answer opens a think block (`<think>`) or holds an empty one (`<think></think>`), as
    with the template's `enable_thinking`. An answer without reasoning is written as one to the empty block. With false,
    an answer with reasoning is refused, since no prompt would lead to it."""
    keep_reasoning: bool = False
    """Also write the reasoning of answers to earlier questions, as with the template's
    `truncate_history_thinking=False`. It then trains, and the text so far never changes as the conversation grows."""
    version: Literal["auto", "nano", "ultra"] = "auto"
    """What separates reasoning from content: `</think>` with line breaks around it (`nano`: Nano and Super), or without
    (`ultra`: Ultra, and Nemotron 3.5). `auto` follows the model's own template."""


def build(options: Nemotron3Options, context: Context) -> Nemotron3:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """
    tokenizer = context.tokenizer
    version = _version(tokenizer.chat_template) if options.version == "auto" else options.version
    keeps = options.keep_reasoning
    renderer = Nemotron3(tokenizer, thinking=options.thinking, keep_reasoning=keeps, version=version)
    return noted(renderer, context, truncate_history_thinking=not keeps, enable_thinking=options.thinking)


def _version(template: str | None) -> Version:
    probe = None if template is None else render_template(template, THOUGHT)
    return "ultra" if probe is not None and f"Hm.{THINK_END}Quite." in probe else "nano"


class Answer(NamedTuple):
    """The parts of an answer.

    Attributes:
        reasoning: range of its reasoning, in `Message.reasoning`, or in the content if `inline`.
        inline: its think block stands in the content.
        content: range of the content behind a think block that stands in it.
    """

    reasoning: tuple[int, int]
    inline: bool
    content: tuple[int, int]

    @property
    def thinks(self) -> bool:
        """It has reasoning."""
        return self.reasoning[0] < self.reasoning[1]


class Nemotron3(TurnRenderer):
    """Nemotron 3 Nano, Super and Ultra, which think before they answer, or not.

    Normalisation: blanks at the end of answers go. A conversation without a system message has an empty one, as in the
    template. A think block that stands first in the content is taken as its reasoning. Answers before the last question
    lose their reasoning, unless `keep_reasoning`; it does not train, and is counted (`Rendered.remarks`). Calls lose
    their ids; a text among their arguments that reads as another JSON value comes back as that value.

    Args:
        thinking: the prompt opens a think block; else it has closed it.
        keep_reasoning: no reasoning is left out.
        version: what stands around `</think>`.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """

    name = "nemotron3"
    controls = (START, END)
    optional = (DOCUMENT_END, THINK, THINK_END, CALL, CALL_END, "<tool_response>", "</tool_response>")
    stops = (END, DOCUMENT_END)

    def __init__(
        self, tokenizer: Tokenizer, *, thinking: bool = False, keep_reasoning: bool = False, version: Version = "nano"
    ) -> None:
        super().__init__(tokenizer)
        self._thinking, self._keeps, self._spaced = thinking, keep_reasoning, version == "nano"
        self._ends = f"\n{THINK_END}\n" if self._spaced else THINK_END
        self.extension = keep_reasoning

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        rendered = super().render(conversation, train_on=train_on)
        messages = conversation.messages
        last = 0 if self._keeps else last_question(messages)
        lost = any(m.role == "assistant" and _parts(m).thinks for m in messages[:last])
        return replace(rendered, remarks=(*rendered.remarks, LEFT_OUT)) if lost else rendered

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; results that follow each other share one frame.

        Raises:
            DataError: a role, a call or a think block it cannot say, reasoning though thinking is off.
        """
        self.check_texts(conversation, ROLES, reasoning=True, calls=True)
        messages = conversation.messages
        self._open(page, conversation, trained)
        last = last_question(messages)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if i == 0 and message.role == "system":
                continue
            page.message()
            if message.role == "tool":
                page.markup("" if i and messages[i - 1].role == "tool" else f"{START}user\n")
                page.markup("<tool_response>\n")
                page.say(message.content, trains, message.weights)
                page.markup("\n</tool_response>\n")
                if i + 1 < len(messages) and messages[i + 1].role == "tool":
                    continue
            else:
                page.markup(f"{START}{message.role}\n")
                if message.role == "assistant":
                    self._answer(page, message, trains, f"messages[{i}]", kept=self._keeps or i > last)
                else:
                    page.say(message.content, trains, message.weights)
            page.markup(END, trains)
            page.markup("\n")
        if ask:
            page.markup(f"{START}assistant\n{THINK}" + ("\n" if self._thinking else THINK_END))

    def read(self, text: str) -> Message:
        if self._thinking and not text.lstrip().startswith(THINK):
            text = THINK + text  # the prompt has opened it
        reasoning, rest = split_thought(text, THINK, THINK_END)
        content, calls = split_calls(rest, words=True)
        return Message("assistant", content.strip(), reasoning=reasoning.strip(), tool_calls=calls)

    def _open(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> None:
        """The system message with the tools."""
        messages, tools = conversation.messages, conversation.tools
        own = messages[0] if messages and messages[0].role == "system" else None
        trains = own is not None and trained[0]
        if own is not None:
            page.message()
        page.markup(f"{START}system\n")
        if own is not None:
            page.say(own.content, trains, own.weights)
        if tools:
            page.markup("\n\n" if own is not None and own.content else "")
            page.markup("# Tools\n\nYou have access to the following functions:\n\n<tools>")
            for tool in tools:
                page.say(described(tool, reordered=True))
            page.markup("\n</tools>" + INSTRUCTIONS)
        page.markup(END, trains)
        page.markup("\n")

    def _answer(self, page: Page, message: Message, trains: bool, where: str, *, kept: bool) -> None:
        """Between the header of an assistant message and its end.

        Args:
            kept: its reasoning is written.
        """
        if _loses(message):
            problem = "one think block, and it stands first; the content has text before it, or a second"
            raise self.refuse(problem, where, "fix the row")
        parts, calls = _parts(message), bool(message.tool_calls)
        if parts.thinks and kept and not self._thinking:
            raise self.refuse("no reasoning while thinking is off", where, "remove it, or set thinking: true")
        begin, end = parts.content
        if kept and parts.inline:  # the block as it stands there
            self._inline(page, message, parts, trains)
        elif kept and parts.thinks:
            page.markup(f"{THINK}\n")
            page.say(message.reasoning, trains, message.reasoning_weights)
            blank = not message.content.strip()
            page.markup(self._ends.rstrip() if blank else self._ends, trains)
        else:
            page.markup(THINK + THINK_END)
            if self._spaced and calls and not kept:
                begin += trimmed(message.content[begin:end])[0]
            elif self._spaced and not calls and parts.thinks and not parts.inline:
                page.markup("\n" if message.content.strip() else "", trains)
        if calls and not kept and not self._spaced:
            end = len(message.content)  # here the template leaves its last blanks
        page.say(message.content, trains, message.weights, cut=(begin, max(begin, end)))
        page.markup("\n" * calls, trains)
        for raw_call in message.tool_calls:
            call = function_call(raw_call, where)
            if not reads_back(call, plain_value):
                spelled = f"{call.name} with {dict(call.arguments)!r:.80}"
                raise self.refuse(f"no markup for a call that spells its markup and ends early: {spelled}", where)
            write_call(page, call, plain_value, trains)
            page.markup("\n", trains)

    def _inline(self, page: Page, message: Message, parts: Answer, trains: bool) -> None:
        """A think block that stands in the content: what the prompt holds of it does not train."""
        content, (begin, _) = message.content, parts.content
        opened = content.index(THINK) + len(THINK)
        block = trains and parts.thinks
        page.markup(THINK)
        feed = opened + content.startswith("\n", opened)
        page.say(content, False, cut=(opened, feed))
        page.say(content, block, message.weights if block else (), cut=(feed, begin - len(THINK_END)))
        page.markup(THINK_END, block)


def _parts(message: Message) -> Answer:
    content = message.content
    end = len(content.rstrip())
    if message.reasoning.strip():
        return Answer((0, len(message.reasoning)), False, (0, end))
    if THINK not in content or THINK_END not in content:
        return Answer((0, 0), False, (0, end))
    begin, stop = content.index(THINK) + len(THINK), content.index(THINK_END)
    inside, behind = trimmed(content[begin:stop]) if begin < stop else (0, 0)
    return Answer((begin + inside, begin + behind), True, (stop + len(THINK_END), end))


def _loses(message: Message) -> bool:
    """The template would drop something of an answer's content, or leave a block open."""
    content = message.content
    if THINK not in content and THINK_END not in content:
        return False
    single = content.count(THINK) == content.count(THINK_END) == 1 and content.lstrip().startswith(THINK)
    return bool(message.reasoning.strip()) or not single
