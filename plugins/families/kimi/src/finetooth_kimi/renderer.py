"""The renderer `kimi_k2`.

    <|im_system|>tool_declare<|im_middle|>[{...}]<|im_end|>
    <|im_system|>system<|im_middle|>You are ...<|im_end|>
    <|im_user|>user<|im_middle|>The time?<|im_end|>
    <|im_assistant|>assistant<|im_middle|><|tool_calls_section_begin|>
    <|tool_call_begin|>functions.clock:0<|tool_call_argument_begin|>{"zone": "UTC"}<|tool_call_end|>
    <|tool_calls_section_end|><|im_end|>
    <|im_system|>clock<|im_middle|>## Return of functions.clock:0
    12:00<|im_end|>

all without line feeds, but for the one behind `## Return of`. A trained message trains from behind the prompt up to and
with `<|im_end|>`. Answers of K2 Thinking begin with a think block, `<think>Look.</think>`. The prompt for one of K2.5
opens the block, or holds an empty one; that does not train. K2.5 sees tools in TypeScript.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Conversation, Message, Options, RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Rendered, TrainOn
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.own_templates import own_template
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import TurnRenderer, json_text, noted
from finetooth_toolbox.messages.chat_templates import PROBES, default_system, render_template

from finetooth_kimi.declarations import declared

SYSTEM, USER, ASSISTANT = "<|im_system|>", "<|im_user|>", "<|im_assistant|>"
MIDDLE, END = "<|im_middle|>", "<|im_end|>"
CALLS, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
THINK, THOUGHT = "<think>", "</think>"
OPENERS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": SYSTEM}
NUMBERED = re.compile(r"functions\.(.+):(\d+)")
"""How the model names a call: its tool, and how many calls the conversation had before."""
UNASKED = re.compile("(" + re.escape(f"{SYSTEM}system{MIDDLE}") + ".*?)" + re.escape(USER), re.DOTALL)
"""The system turn that a template writes unasked; that of Kimi K2 has a line feed behind it, others none."""
Version = Literal["instruct", "thinking", "k2.5"]


class KimiOptions(Options):
    """Options of `kimi_k2`."""

    version: Literal["auto", "instruct", "thinking", "k2.5"] = "auto"
    """Whether answers begin with a think block, and whether the prompt opens it (`k2.5`, for Kimi K2.5); `auto` follows
    the model's own chat template."""
    thinking: bool = True
    """Whether Kimi K2.5 thinks before it answers: the prompt for an answer opens a think block, or holds an empty one,
    as with the template's `thinking`. With false, an answer with reasoning is refused, since no prompt would lead to
    it."""
    keep_reasoning: bool = False
    """With think blocks: also write the reasoning of earlier answers, which the models' own template leaves out."""


def build(options: KimiOptions, context: Context) -> KimiK2:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no tokens of Kimi's, or the model cannot leave thinking out.
    """
    renderer = KimiK2(context.tokenizer, options)
    if not options.thinking and renderer.version != "k2.5":
        raise RecipeError("data.renderer.thinking", "only Kimi K2.5 thinks or not as it is asked", action="remove it")
    told: dict[str, Any] = {"thinking": options.thinking}
    if renderer.version == "k2.5":
        told["tools_ts_str"] = declared(PROBES[-1].tools)  # which its tokenizer gives the template
    return noted(renderer, context, **told)


class KimiK2(TurnRenderer):
    """Kimi K2, K2 Thinking, K2.5, and others with their markup.

    Normalisation: calls are numbered through the conversation, as the model does, whatever ids they came with; results
    take the numbers of their calls. With think blocks, the reasoning of an answer before the last is left out unless it
    goes with the calls of the last one, and counted (`Rendered.remarks`); the empty block in its place does not train.

    Args:
        options: what differs between models.

    Raises:
        RecipeError: the tokenizer has no tokens of Kimi's.
    """

    name = "kimi_k2"
    controls = (SYSTEM, USER, ASSISTANT, MIDDLE, END)
    optional = (CALLS, CALLS_END, CALL, ARGUMENTS, CALL_END, THINK, THOUGHT)
    stops = (END,)

    def __init__(self, tokenizer: Tokenizer, options: KimiOptions) -> None:
        super().__init__(tokenizer)
        template = tokenizer.chat_template
        self.version: Version = _version(template) if options.version == "auto" else options.version
        self._keeps, self._thinking = options.keep_reasoning, options.thinking
        self._opened = self.version == "k2.5"
        self._unasked = default_system(template, UNASKED)
        self._separators = _separators(template)
        self.extension = self.version == "instruct" or self._keeps or not self._thinking
        if self._opened:
            return
        self.template = own_template(
            Path(__file__).parent / "kimi_k2.jinja",
            {
                "openers": OPENERS, "middle": MIDDLE, "end": END, "calls": CALLS, "calls_end": CALLS_END,
                "call_start": CALL, "arguments_start": ARGUMENTS, "call_end": CALL_END, "unasked": self._unasked,
                "thinking": "yes" if self.version == "thinking" else "", "keeps": "yes" if self._keeps else "",
                "blanks": "yes" if self._separators[0] == ", " else "",
            },
        )  # fmt: skip

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        rendered = super().render(conversation, train_on=train_on)
        first = self._thinks_from(conversation.messages, ask=False)
        lost = any(message.reasoning for message in conversation.messages[:first])
        return replace(rendered, remarks=("reasoning left out",)) if lost else rendered

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message, from its opening token; tools and a system message that
        nobody wrote belong to none.

        Raises:
            DataError: a role or call that it cannot say, reasoning without think blocks, a result of no call.
        """
        messages = conversation.messages
        self.check_texts(conversation, tuple(OPENERS), reasoning=self.version != "instruct", calls=True)
        if conversation.tools:
            page.markup(f"{SYSTEM}tool_declare{MIDDLE}")
            page.say(self._described(conversation.tools))
            page.markup(END)
        if self._unasked and messages and messages[0].role != "system":
            page.markup(self._unasked)
        thinks_from, numbers = self._thinks_from(messages, ask=ask), self._numbers(messages)
        for i, message in enumerate(messages):
            if i >= thinks_from and message.reasoning and not self._thinking:
                raise self.refuse(
                    "no reasoning while thinking is off", f"messages[{i}]", "remove it, or set thinking: true"
                )
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            page.message()
            page.markup(OPENERS[message.role])
            page.say(message.name or message.role)
            page.markup(MIDDLE)
            if message.role == "assistant":
                self._answer(page, message, trains, i >= thinks_from, numbers.get(i, ()))
            else:
                if message.role == "tool":
                    page.markup("## Return of ", trains)
                    page.say(numbers[i][0], trains)
                    page.markup("\n", trains)
                page.say(message.content, trains, message.weights)
            page.markup(END, trains)
        if ask:
            page.markup(f"{ASSISTANT}assistant{MIDDLE}" + THINK * self._opened + THOUGHT * (not self._thinking))

    def read(self, text: str) -> Message:
        """The message that a completion says; calls with the numbers that the model gave them."""
        if self._opened and self._thinking and not text.startswith(THINK):
            text = THINK + text
        reasoning, rest = "", text
        if self.version != "instruct" and text.startswith(THINK):  # a block that was not closed is reasoning to its end
            reasoning, _, rest = text.removeprefix(THINK).partition(THOUGHT)
        content, opened, inside = rest.partition(CALLS)
        calls = _calls_of(inside.removesuffix(CALLS_END)) if opened and inside.endswith(CALLS_END) else None
        return Message("assistant", rest if calls is None else content, reasoning=reasoning, tool_calls=calls or ())

    def _described(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """
        Raises:
            DataError: K2.5 has no words for a schema.
        """
        if not self._opened:
            return json.dumps(tools, ensure_ascii=False, separators=self._separators)
        try:
            return declared(tools)
        except ValueError as error:
            raise self.refuse(
                f"no way to declare {error!s:.80}", "tools", "give the schema a type, without $ref"
            ) from None

    def _answer(self, page: Page, message: Message, trains: bool, thinks: bool, numbers: Sequence[str]) -> None:
        if self.version != "instruct":
            # the block of an answer whose reasoning is left out is not what a model should say
            block = trains and self._thinking and (thinks or not message.reasoning)
            page.markup(THINK, block and not self._opened)
            if thinks:
                page.say(message.reasoning, trains, message.reasoning_weights)
            page.markup(THOUGHT, block)
        page.say(message.content, trains, message.weights)
        if message.tool_calls:
            page.markup(CALLS, trains)
            for call, number in zip(message.tool_calls, numbers, strict=True):
                page.markup(CALL, trains)
                page.say(number, trains)
                page.markup(ARGUMENTS, trains)
                page.say(json_text(call["function"]["arguments"]), trains)
                page.markup(CALL_END, trains)
            page.markup(CALLS_END, trains)

    def _numbers(self, messages: Sequence[Message]) -> Mapping[int, Sequence[str]]:
        """What calls are named, by the message that makes them; and of a result the name of its call: the last one
        before it with its id or, without ids, the one in its place.

        Raises:
            DataError: a call not of the OpenAI shape, a result of no call.
        """
        numbers: dict[int, Sequence[str]] = {}
        made: list[tuple[str, str]] = []  # id and name of every call
        last: Sequence[tuple[str, str]] = ()
        place = 0  # of the next result among those of the last calls
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            if message.tool_calls:
                begin = len(made)
                for call in message.tool_calls:
                    name = function_call(call, where).name
                    made.append((str(call.get("id") or ""), f"functions.{name}:{len(made)}"))
                last, place = made[begin:], 0
                numbers[i] = [number for _, number in last]
            elif message.role == "tool":
                named = [number for id_, number in made if id_ and id_ == message.tool_call_id]
                placed = last[place] if place < len(last) else None
                if not named and (placed is None or (message.tool_call_id and placed[0])):
                    raise self.refuse("no markup for a result without a call", where, "fix the row")
                numbers[i] = [named[-1] if named or placed is None else placed[1]]
                place += 1
        return numbers

    def _thinks_from(self, messages: Sequence[Message], *, ask: bool) -> int:
        """The first message whose reasoning is written: behind the last answer without calls that came before the
        one that is asked for, or stands last."""
        if self._keeps or self.version == "instruct":
            return 0
        stop = len(messages) - (not ask)
        plain = (i for i, m in enumerate(messages[:stop]) if m.role == "assistant" and not m.tool_calls)
        return max(plain, default=-1) + 1


def _version(template: str | None) -> Version:
    if template is None or THINK not in template:
        return "instruct"
    prompt = render_template(template, ({"role": "user", "content": "Hello?"},), prompt=True) or ""
    return "k2.5" if prompt.endswith(THINK) else "thinking"


def _separators(template: str | None) -> tuple[str, str]:
    """Between the items, and the keys and values, of the tools in JSON: the templates of early models write blanks."""
    messages = ({"role": "user", "content": "Hello?"},)
    tools = ({"type": "function", "function": {"name": "probe"}},)
    text = (template and render_template(template, messages, tools=tools)) or ""
    return (", ", ": ") if '"type": "function"' in text else (",", ":")


def _calls_of(text: str) -> tuple[Mapping[str, Any], ...] | None:
    """Calls between the tokens of a section; None if it is anything else."""
    calls: list[Mapping[str, Any]] = []
    for part in text.split(CALL)[1:] if text.startswith(CALL) else ():
        number, separator, arguments = part.strip().removesuffix(CALL_END).partition(ARGUMENTS)
        named = NUMBERED.fullmatch(number.strip())
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
        if not part.strip().endswith(CALL_END) or not separator or named is None or not isinstance(value, dict):
            return None
        calls.append({"id": number.strip(), **call_of(named[1], value)})
    return tuple(calls) or None
