# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""The renderers `deepseek_v3` and `deepseek_r1`, which write arguments of calls in fences.

    <｜begin▁of▁sentence｜>You are ...<｜User｜>Hello?<｜Assistant｜>Yes.<｜end▁of▁sentence｜>

A trained message trains what stands between `<｜Assistant｜>` and `<｜end▁of▁sentence｜>`, and that token: content and
tool calls; with `thinking` also the reasoning and what closes it, since the prompt only opens it.

The models' own templates end a prompt with `<｜Assistant｜><think>\\n`, but write answers as `<｜Assistant｜>Yes.`, so
what they ask is not how what they show begins. Here each of the two ways is whole. Without `thinking`, conversations
are those of the template, and the prompt ends with `<｜Assistant｜>`. With it, the prompt is the template's, and the
answer that follows it is written with its reasoning, as the models give it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from finetooth_hooks import Conversation, Message
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.turns import json_text, last_question, noted, trimmed

from finetooth_deepseek import markup as m
from finetooth_deepseek.thinking import ThinkingOptions, ThinkingTurns

_CALL = re.compile(
    rf"\n?{m.CALL}[^\n]*?{m.SEPARATOR}(?P<name>[^\n]*)\n```json\n(?P<arguments>.*?)\n```{m.CALL_END}", re.DOTALL
)


class FencedOptions(ThinkingOptions):
    """Options of `deepseek_v3` and `deepseek_r1`."""

    whole_calls: bool = False
    """Write the opening tokens of tool calls and tool outputs in every message. The models' own templates write them
    only for a conversation's first ones; a later call then follows the question without `<｜Assistant｜>`, where no
    prompt ends."""


def build_v3(options: FencedOptions, context: Context) -> DeepSeekV3:
    """Builds the renderer of DeepSeek V3, and notes where the chat template writes conversations otherwise.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """
    return noted(DeepSeekV3(context.tokenizer, options), context, _Shown(context.tokenizer, FencedOptions()))


def build_r1(options: FencedOptions, context: Context) -> DeepSeekR1:
    """Builds the renderer of DeepSeek R1, and notes where the chat template writes conversations otherwise.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """
    return noted(DeepSeekR1(context.tokenizer, options), context, _ShownR1(context.tokenizer, FencedOptions()))


@dataclass
class _Place:
    """Where in a conversation the page is: outputs of tools are being told, calls and outputs were opened before."""

    tool: bool = False
    calls_opened: bool = False
    outputs_opened: bool = False


class DeepSeekV3(ThinkingTurns):
    """DeepSeek V3 and R1.

    Normalisation: what stands before the last `</think>` that a content spells is its reasoning, unless it has calls or
    follows a tool. Reasoning is written with `thinking` only, without the blanks around it, for answers that follow a
    question. Schemas of tools are never written. Without `whole_calls`, text of a later call is left out. All that
    is left out is counted (`Rendered.remarks`).

    Args:
        options: what differs between conversations.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """

    name = "deepseek_v3"
    splits_last = True
    between_outputs: ClassVar[str] = ""

    def __init__(self, tokenizer: Tokenizer, options: FencedOptions) -> None:
        super().__init__(tokenizer, options)
        self._whole_calls = options.whole_calls
        # what a later call looks like in the templates begins no prompt that a model was asked with
        self.extension = options.whole_calls and (options.keep_reasoning or not options.thinking)

    def left_out(self, conversation: Conversation) -> tuple[str, ...]:
        omissions, messages = super().left_out(conversation), conversation.messages
        if any(messages[i].content for i in self._later_calls(messages)):
            omissions += ("text of later calls left out",)
        return omissions

    def reasons(self, messages: Sequence[Message]) -> list[bool]:
        flags = super().reasons(messages)
        for i in self._later_calls(messages):  # nothing opens it, so it has no place for reasoning
            flags[i] = False
        return flags

    def _later_calls(self, messages: Sequence[Message]) -> list[int]:
        """Messages with calls that run on from what stands before them."""
        return [] if self._whole_calls else [i for i, message in enumerate(messages) if message.tool_calls][1:]

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; what stands before the first message belongs to none.

        Raises:
            DataError: a system message where it cannot stand, a call it cannot say.
        """
        messages = conversation.messages
        self._check(messages)
        page.markup(m.BEGIN)
        first = m.systems(messages)
        m.write_system(page, messages[:first], trained[:first])
        place, last = _Place(), last_question(messages)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if i < first:
                continue
            page.message()
            if message.role == "user":
                place.tool = False
                page.markup(m.USER)
                page.say(message.content, trains, message.weights)
            elif message.role == "tool":
                self._output(page, message, trains, place)
            elif message.tool_calls:
                self._calls(page, message, trains, place, thinks=self.thinks(i, last), where=f"messages[{i}]")
            else:
                self._answer(page, message, trains, place, self.thinks(i, last), f"messages[{i}]")
        if place.tool:
            page.markup(m.OUTPUTS_END)
        elif ask:
            page.markup(m.ASSISTANT + (f"{m.THINK}\n" if self._thinking else ""))

    def read(self, text: str) -> Message:
        """The message that a completion says; reasoning ends at the first `</think>`.

        Without one all is content: behind the outputs of tools no prompt opens a think block.
        """
        reasoning = ""
        if (self._thinking or text.startswith(m.THINK)) and m.THOUGHT in text:
            reasoning, _, text = text.partition(m.THOUGHT)
            if not self._thinking:  # the prompt did not open the block
                reasoning = reasoning.removeprefix(m.THINK).removeprefix("\n")
            reasoning, text = reasoning.removesuffix("\n"), text.removeprefix("\n\n")
        content, calls = m.read_calls(text, _CALL)
        return Message("assistant", content, reasoning=reasoning, tool_calls=calls)

    def _open(self, page: Page, message: Message, trains: bool, thinks: bool, where: str) -> None:
        """`<｜Assistant｜>`, and the reasoning of a message that has its own.

        Raises:
            DataError: the reasoning holds another think block.
        """
        page.markup(m.ASSISTANT)
        if thinks:
            text, weights, (first, stop) = self.written_thought(message, where)
            page.markup(f"{m.THINK}\n")
            # trimmed, since a line feed after that of the prompt would be one token with it
            begin, end = (first + at for at in trimmed(text[first:stop]))
            page.say(text, trains, weights, cut=(begin, end))
            page.markup("\n" if begin < end else "", trains)
            page.markup(f"{m.THOUGHT}\n\n", trains)

    def _answer(self, page: Page, message: Message, trains: bool, place: _Place, thinks: bool, where: str) -> None:
        if place.tool:
            page.markup(m.OUTPUTS_END)
            page.say(message.content, trains, message.weights)
            place.tool = False
        else:
            self._open(page, message, trains, thinks, where)
            page.say(message.content, trains, message.weights, cut=self._answer_of(message, thinks))
        page.markup(m.END, trains)

    def _answer_of(self, message: Message, thinks: bool) -> tuple[int, int]:
        """The range of a content behind its think block; where the block is written, the line feeds between the two are
        those of the markup."""
        begin, end = self.thought_of(message).content
        if thinks and begin:
            begin = end - len(message.content[begin:].lstrip("\n"))
        return begin, end

    def _calls(self, page: Page, message: Message, trains: bool, place: _Place, *, thinks: bool, where: str) -> None:
        whole = self._whole_calls
        cut = None
        if whole and place.tool:
            page.markup(m.OUTPUTS_END)
        elif whole or not place.calls_opened:
            self._open(page, message, trains, thinks, where)
            cut = self._answer_of(message, thinks) if thinks else None
        if whole or not place.calls_opened:
            page.say(message.content, trains, message.weights, cut=cut)
            page.markup(m.CALLS, trains)
        for i, call in enumerate(message.tool_calls):
            name, arguments = m.function_of(call, where)
            page.markup("\n" if i or (place.calls_opened and not whole) else "", trains)
            page.markup(m.CALL, trains)
            page.say(str(call.get("type", "function")), trains)
            page.markup(m.SEPARATOR, trains)
            page.say(name, trains)
            page.markup("\n```json\n", trains)
            page.say(self._arguments(arguments), trains)
            page.markup(f"\n```{m.CALL_END}", trains)
        page.markup(m.CALLS_END + m.END, trains)
        place.calls_opened, place.tool = True, False

    def _output(self, page: Page, message: Message, trains: bool, place: _Place) -> None:
        opens = not place.outputs_opened or (self._whole_calls and not place.tool)
        page.markup(m.OUTPUTS if opens else self.between_outputs)
        page.markup(m.OUTPUT)
        page.say(message.content, trains, message.weights)
        page.markup(m.OUTPUT_END, trains)
        place.tool = place.outputs_opened = True

    def _arguments(self, arguments: object) -> str:
        """JSON; text is taken for JSON as it is."""
        return arguments if isinstance(arguments, str) else json_text(arguments)

    def _check(self, messages: Sequence[Message]) -> None:
        for i, message in enumerate(messages[m.systems(messages) :], m.systems(messages)):
            if message.role == "system":
                raise self.refuse("no system message after another message", f"messages[{i}]")
            if message.role not in ("user", "assistant", "tool"):
                raise self.refuse(f"no role {message.role!r}", f"messages[{i}]")


class DeepSeekR1(DeepSeekV3):
    """Models distilled from DeepSeek R1, over Qwen's or Llama's vocabulary.

    Normalisation: as `DeepSeekV3`.
    """

    name = "deepseek_r1"
    between_outputs = "\n"

    def _arguments(self, arguments: object) -> str:
        return json_text(arguments)

    def _check(self, messages: Sequence[Message]) -> None:
        super()._check(messages)
        if m.systems(messages) > 1:
            raise self.refuse("one system message at most", "messages[1]", "join them, or set data.renderer: jinja")
        for i, message in enumerate(messages):
            if message.tool_calls and message.content:
                raise self.refuse("no text next to tool calls", f"messages[{i}]")


class _Shown(DeepSeekV3):
    """Compared with a template in conversations alone: its prompts differ on purpose."""

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        raise self.refuse("no prompt to compare", "messages")


class _ShownR1(_Shown, DeepSeekR1):
    pass
