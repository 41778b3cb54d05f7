"""The renderer `minimax_m2`.

    ]~!b[]~b]system
    You are ...[e~[
    ]~b]user
    The time?[e~[
    ]~b]ai
    <think>
    A look.
    </think>

    I look.
    <minimax:tool_call>
    <invoke name="clock">
    <parameter name="zone">UTC</parameter>
    </invoke>
    </minimax:tool_call>[e~[
    ]~b]tool
    <response>12:00</response>[e~[

The prompt for an answer opens the think block, `<think>` and a line feed, which do not train. A trained answer trains
what follows: its reasoning and `</think>`, its content, its calls and `[e~[`. One without reasoning has no block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Rendered, TrainOn
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.parameter_calls import argument_value, json_value
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import TurnRenderer, json_text, last_question, noted
from finetooth_toolbox.messages.chat_templates import default_system

BEGIN, ROLE, END = "]~!b[", "]~b]", "[e~["
THINK, THOUGHT = "<think>", "</think>"
CALLS, CALLS_END = "<minimax:tool_call>", "</minimax:tool_call>"
ROLES = {"system": "system", "user": "user", "assistant": "ai", "tool": "tool"}
UNASKED = re.compile(re.escape(f"{BEGIN}{ROLE}system\n") + "(.*?)" + re.escape(END), re.DOTALL)
TOOLS = (
    "\n\n# Tools\nYou may call one or more tools to assist with the user query.\nHere are the tools available in "
    "JSONSchema format:\n\n<tools>\n",
    "</tools>\n\nWhen making tool calls, use XML format to invoke tools and pass parameters:\n\n"
    f'{CALLS}\n<invoke name="tool-name-1">\n<parameter name="param-key-1">param-value-1</parameter>\n'
    f'<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n{CALLS_END}',
)
"""Instructions before and behind the schemas of tools."""
_ARGUMENT = re.compile(r'<parameter name="([^"\n]*)">(.*?)</parameter>\n', re.DOTALL)
_CALL = re.compile(rf'<invoke name="([^"\n]*)">\n((?:{_ARGUMENT.pattern})*?)</invoke>\n', re.DOTALL)
_BLOCK = re.compile(rf"\n?{CALLS}\n((?:{_CALL.pattern})+){CALLS_END}\s*\Z", re.DOTALL)


class MiniMaxOptions(Options):
    """Options of `minimax_m2`."""

    keep_reasoning: bool = False
    """Also write the reasoning of answers to earlier questions, which the models' own template leaves out."""


def build(options: MiniMaxOptions, context: Context) -> MiniMaxM2:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no MiniMax tokens.
    """
    return noted(MiniMaxM2(context.tokenizer, options), context)


class MiniMaxM2(TurnRenderer):
    """MiniMax-M2, M2.1, M2.5 and M2.7.

    Normalisation: calls lose their ids; a text among their arguments that reads as another JSON value comes back as
    that value. Without reasoning of its own, a content with a think block has its reasoning there, without line feeds
    around it. Reasoning of answers to earlier questions is left out and counted (`Rendered.remarks`).

    Args:
        options: what differs between conversations.

    Raises:
        RecipeError: the tokenizer has no MiniMax tokens.
    """

    name = "minimax_m2"
    controls = (BEGIN, ROLE, END)
    optional = (THINK, THOUGHT, CALLS, CALLS_END)
    stops = (END,)

    def __init__(self, tokenizer: Tokenizer, options: MiniMaxOptions) -> None:
        super().__init__(tokenizer)
        self.extension = self._keeps = options.keep_reasoning
        template = tokenizer.chat_template
        self._unasked = "You are a helpful assistant." if not template else default_system(template, UNASKED)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        messages, rendered = conversation.messages, super().render(conversation, train_on=train_on)
        first = 0 if self._keeps else last_question(messages)
        lost = any(message.role == "assistant" and _split(message)[1] for message in messages[:first])
        return replace(rendered, remarks=("reasoning left out",)) if lost else rendered

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; results that follow each other share one turn. A system
        message that is added stands before the first range.

        Raises:
            DataError: a role, a call or a result that it cannot say, a think block that the template would lose.
        """
        self.check_texts(conversation, tuple(ROLES), reasoning=True, calls=True)
        messages, last, called = conversation.messages, last_question(conversation.messages), False
        self._open(page, conversation, trained)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            role, where = message.role, f"messages[{i}]"
            if role == "system":
                if i:
                    raise self.refuse("a system message only at the beginning", where, "move it there")
                continue
            if role == "tool" and not called:
                raise self.refuse("no markup for a result of no call", where, "fix the row")
            page.message()
            if role != "tool":
                page.markup(f"{ROLE}{ROLES[role]}\n")
            elif messages[i - 1].role != "tool":
                page.markup(f"{ROLE}tool")
            if role == "assistant":
                called = bool(message.tool_calls)
                self._answer(page, message, trains, where, thinks=self._keeps or i > last)
            elif role == "tool":
                page.markup("\n<response>")
                page.say(message.content, trains, message.weights)
                page.markup("</response>", trains)
            else:
                page.say(message.content, trains, message.weights)
            if role != "tool" or i + 1 == len(messages) or messages[i + 1].role != "tool":
                page.markup(END, trains)
                page.markup("\n")
        if ask:
            page.markup(f"{ROLE}ai\n{THINK}\n")

    def read(self, text: str) -> Message:
        """The message that a completion says; a block that was not closed is reasoning to its end."""
        reasoning, _, rest = text.removeprefix(f"{THINK}\n").partition(THOUGHT)
        rest = rest.removeprefix("\n\n")
        block = _BLOCK.search(rest)
        content, calls = (rest, ()) if block is None else (rest[: block.start()], _calls_of(block[1]))
        return Message("assistant", content, reasoning=reasoning.removesuffix("\n"), tool_calls=calls)

    def _open(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> None:
        """The system message, with the tools."""
        first = next(iter(conversation.messages), None)
        own = first if first is not None and first.role == "system" else None
        page.markup(BEGIN)
        if own is not None:
            page.message()
        page.markup(f"{ROLE}system\n")
        trains = own is not None and trained[0]
        if own is not None and own.content:
            page.say(own.content, trains, own.weights)
        else:
            page.say(self._unasked)
        if conversation.tools:
            page.markup(TOOLS[0])
            for tool in conversation.tools:
                page.markup("<tool>")
                page.say(json_text(tool.get("function", tool)))
                page.markup("</tool>\n")
            page.markup(TOOLS[1])
        page.markup(END, trains)
        page.markup("\n")

    def _answer(self, page: Page, message: Message, trains: bool, where: str, *, thinks: bool) -> None:
        inline, present, (begin, stop), content, lost = _split(message)
        if lost:
            problem = "one think block, and it stands first; the content has text before it, or a second"
            raise self.refuse(problem, where, "fix the row")
        if thinks and present:
            page.markup(f"{THINK}\n")
            if inline:
                page.say(message.content, trains, message.weights, cut=(begin, stop))
            else:
                page.say(message.reasoning, trains, message.reasoning_weights)
            page.markup(f"\n{THOUGHT}\n\n", trains)
        page.say(message.content, trains, message.weights, cut=content)
        if not message.tool_calls:
            return
        page.markup(f"\n{CALLS}\n", trains)
        for call in message.tool_calls:
            self._call(page, call, trains, where)
        page.markup(CALLS_END, trains)

    def _call(self, page: Page, call: Mapping[str, Any], trains: bool, where: str) -> None:
        """
        Raises:
            DataError: it is not of the OpenAI shape, or spells the markup, so that it could not be read back.
        """
        name, arguments = function_call(call, where)
        pairs = [(str(key), json_value(value)) for key, value in arguments.items()]
        written = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in pairs)
        match = _CALL.fullmatch(f'<invoke name="{name}">\n{written}</invoke>\n')
        spells = any(tag in text for tag in (CALLS, CALLS_END) for text in (name, written))
        if match is None or match[1] != name or _ARGUMENT.findall(match[2]) != pairs or spells:
            spelled = f"{name} with {dict(arguments)!r:.80}"
            raise self.refuse(f"no markup for a call that spells its markup and ends early: {spelled}", where)
        page.markup('<invoke name="', trains)
        page.say(name, trains)
        page.markup('">\n', trains)
        for key, value in pairs:
            page.markup('<parameter name="', trains)
            page.say(key, trains)
            page.markup('">', trains)
            page.say(value, trains)
            page.markup("</parameter>\n", trains)
        page.markup("</invoke>\n", trains)


def _split(message: Message) -> tuple[bool, bool, tuple[int, int], tuple[int, int], bool]:
    """Whether the reasoning of an answer stands in its content; whether there is any; its range there; the range of
    the rest of the content; and whether the template would lose something of it."""
    content = message.content
    if message.reasoning or THOUGHT not in content:
        return False, bool(message.reasoning), (0, 0), (0, len(content)), False
    stop, behind = content.index(THOUGHT), content.rindex(THOUGHT) + len(THOUGHT)
    opened = content.rfind(THINK, 0, stop)
    lost = behind != stop + len(THOUGHT) or bool(content[: max(opened, 0)].strip("\n"))
    thought = _without_feeds(content, opened + len(THINK) if opened >= 0 else 0, stop)
    return True, thought[0] < thought[1], thought, _without_feeds(content, behind, len(content)), lost


def _without_feeds(text: str, begin: int, stop: int) -> tuple[int, int]:
    """A range of a text without the line feeds around it."""
    inside = text[begin:stop]
    first = begin + len(inside) - len(inside.lstrip("\n"))
    return first, max(first, begin + len(inside.rstrip("\n")))


def _calls_of(text: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        call_of(match[1], {key: argument_value(value) for key, value in _ARGUMENT.findall(match[2])})
        for match in _CALL.finditer(text)
    )
