# the bars of these tokens are wide ones
"""The renderers `deepseek_v3_2` and `deepseek_v4`, whose models come with an encoder in Python, not a chat template.

    <｜begin▁of▁sentence｜>You are ...<｜User｜>The time?<｜Assistant｜></think>I look.

    <｜DSML｜function_calls>
    <｜DSML｜invoke name="clock">
    <｜DSML｜parameter name="zone" string="true">UTC</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls><｜end▁of▁sentence｜>

    <function_results>
    <result>12:00</result>
    </function_results>

    </think>Noon.<｜end▁of▁sentence｜>

V4 calls the block `tool_calls`, and its results stand in a turn of the user, `<tool_result>12:00</tool_result>`. The
prompt for an answer ends with `</think>` or, with `thinking`, opens the think block. A trained answer trains what
follows: with `thinking` its reasoning and `</think>`, then its content, its calls and `<｜end▁of▁sentence｜>`.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from finetooth_hooks import Conversation, Message
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import json_text, last_question, noted

from finetooth_deepseek import markup as m
from finetooth_deepseek.thinking import ThinkingOptions, ThinkingTurns
from finetooth_deepseek.tool_texts import TOOLS_V3_2, TOOLS_V4

DSML = m.DSML
ROLES = ("system", "user", "assistant", "tool")
_ARGUMENT = re.compile(rf'<{DSML}parameter name="([^"\n]*)" string="(true|false)">(.*?)</{DSML}parameter>\n', re.DOTALL)
_CALL = re.compile(
    rf'<{DSML}invoke name="([^"\n]*)">\n((?:{_ARGUMENT.pattern})*?)\n?</{DSML}invoke>\n', re.DOTALL
)  # fmt: skip


class DSMLOptions(ThinkingOptions):
    """Options of `deepseek_v3_2` and `deepseek_v4`."""


def build_v3_2(options: DSMLOptions, context: Context) -> DeepSeekV32:
    """Builds the renderer of DeepSeek V3.2, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """
    return noted(DeepSeekV32(context.tokenizer, options), context, thinking=options.thinking)


def build_v4(options: DSMLOptions, context: Context) -> DeepSeekV4:
    """Builds the renderer of DeepSeek V4, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """
    return noted(DeepSeekV4(context.tokenizer, options), context, thinking=options.thinking)


class DSMLTurns(ThinkingTurns):
    """What `deepseek_v3_2` and `deepseek_v4` share.

    Normalisation: a content that begins with a think block has its reasoning there. Reasoning that is not written is
    counted (`Rendered.remarks`). Calls lose their ids.

    Attributes:
        block: the tag around calls.
        instructions: on tools, before and behind their schemas.

    Args:
        options: what differs between conversations.

    Raises:
        RecipeError: the tokenizer has no DeepSeek tokens.
    """

    optional = (*m.OPTIONAL, DSML)
    splits_last = False
    block: ClassVar[str]
    instructions: ClassVar[tuple[str, str]]

    def __init__(self, tokenizer: Tokenizer, options: ThinkingOptions) -> None:
        super().__init__(tokenizer, options)
        self.extension = options.keep_reasoning or not options.thinking

    def left_out(self, conversation: Conversation) -> tuple[str, ...]:
        written = self.written(conversation)
        lost = any(
            not writes and (message.reasoning or self.thought_of(message).inline)
            for message, writes in zip(conversation.messages, written, strict=True)
            if message.role == "assistant"
        )
        return ("reasoning left out",) * lost

    @abstractmethod
    def written(self, conversation: Conversation) -> Sequence[bool]:
        """Of which messages the reasoning is written, and before which answers the think block is open."""

    @abstractmethod
    def ask(self, page: Page, conversation: Conversation, i: int, trained: bool, thinks: bool) -> None:
        """Write a question or a result, and if an answer follows, with what its prompt ends.

        Args:
            i: which message.
            thinks: an answer to it writes its reasoning.

        Raises:
            DataError: a result of no call.
        """

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; with what the prompt for an answer ends belongs to the
        message before it.

        Raises:
            DataError: a role, a call or a result that it cannot say, a think block where none can stand.
        """
        self.check_texts(conversation, ROLES, reasoning=True, calls=True)
        messages, written = conversation.messages, self.written(conversation)
        page.markup(m.BEGIN)
        self._open(page, conversation, trained)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if message.role == "system":
                if i:
                    raise self.refuse("a system message only at the beginning", f"messages[{i}]", "move it there")
                continue
            page.message()
            if message.role == "assistant":
                opened = i > 0 and messages[i - 1].role in ("user", "tool")
                self._answer(page, message, trains, written[i], f"messages[{i}]", opened=opened)
            else:
                self.ask(page, conversation, i, trains, written[i])

    def read(self, text: str) -> Message:
        """The message that a completion says; with `thinking`, a block that was not closed is reasoning to its end."""
        reasoning = ""
        if self._thinking:
            reasoning, _, text = text.removeprefix(m.THINK).partition(m.THOUGHT)
        content, opened, inside = text.partition(f"\n\n<{DSML}{self.block}>\n")
        calls = _calls_of(inside.removesuffix(f"</{DSML}{self.block}>")) if opened else ()
        return Message("assistant", content if calls else text, reasoning=reasoning, tool_calls=calls)

    def _open(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> None:
        """The system message, with the tools."""
        first = conversation.messages[:1]
        if first and first[0].role == "system":
            page.message()
            page.say(first[0].content, trained[0], first[0].weights)
        if conversation.tools:
            before, behind = self.instructions
            page.markup(before)
            for i, tool in enumerate(conversation.tools):
                page.say("\n" * bool(i) + json_text(tool.get("function", tool)))
            page.markup(behind)

    def _answer(self, page: Page, message: Message, trains: bool, thinks: bool, where: str, *, opened: bool) -> None:
        thought = self.thought_of(message)
        if thought.twice or (thinks and not opened):
            problem = "one think block for an answer" if thought.twice else "no think block for a second answer"
            raise self.refuse(problem, where, "fix the row")
        if thinks:
            text, weights, cut = self.written_thought(message, where)
            page.say(text, trains, weights, cut=cut)
            page.markup(m.THOUGHT, trains)
        page.say(message.content, trains, message.weights, cut=thought.content if thought.inline else None)
        if message.tool_calls:
            page.markup(f"\n\n<{DSML}{self.block}>\n", trains)
            for call in message.tool_calls:
                self._call(page, call, trains, where)
            page.markup(f"</{DSML}{self.block}>", trains)
        page.markup(m.END, trains)

    def _call(self, page: Page, call: Mapping[str, Any], trains: bool, where: str) -> None:
        """
        Raises:
            DataError: it is not of the OpenAI shape, or spells the markup, so that it could not be read back.
        """
        name, arguments = function_call(call, where)
        texts = [(str(key), *_text_of(value)) for key, value in arguments.items()]
        written = "".join(
            f'<{DSML}parameter name="{key}" string="{kind}">{text}</{DSML}parameter>\n' for key, kind, text in texts
        )
        if _calls_of(f'<{DSML}invoke name="{name}">\n{written}</{DSML}invoke>\n') != (call_of(name, arguments),):
            spelled = f"{name} with {dict(arguments)!r:.80}"
            raise self.refuse(f"no markup for a call that spells its markup and ends early: {spelled}", where)
        page.markup(f'<{DSML}invoke name="', trains)
        page.say(name, trains)
        page.markup('">\n', trains)
        for key, kind, text in texts:
            page.markup(f'<{DSML}parameter name="', trains)
            page.say(key, trains)
            page.markup(f'" string="{kind}">', trains)
            page.say(text, trains)
            page.markup(f"</{DSML}parameter>\n", trains)
        page.markup(("" if texts else "\n") + f"</{DSML}invoke>\n", trains)


class DeepSeekV32(DSMLTurns):
    """DeepSeek V3.2. Reasoning of answers to earlier questions goes, unless `keep_reasoning`; see `DSMLTurns`."""

    name = "deepseek_v3_2"
    block = "function_calls"
    instructions = TOOLS_V3_2

    def written(self, conversation: Conversation) -> Sequence[bool]:
        messages = conversation.messages
        last = last_question(messages)
        return [self._thinking and (self._keeps or i >= last) for i in range(len(messages))]

    def ask(self, page: Page, conversation: Conversation, i: int, trained: bool, thinks: bool) -> None:
        messages = conversation.messages
        message, block = messages[i], m.THINK if thinks else m.THOUGHT
        called = next((j for j in range(i - 1, -1, -1) if messages[j].role != "tool"), -1)
        if message.role == "user":
            if 0 < i - 1 - called < len(messages[called].tool_calls):
                raise self.refuse("a place for all results of an answer's calls, not for some", f"messages[{i}]")
            page.markup(m.USER)
            page.say(message.content, trained, message.weights)
            page.markup(m.ASSISTANT + block)
            return
        calls, place = len(messages[called].tool_calls) if called >= 0 else 0, i - called
        if place > calls:
            raise self.refuse("no markup for a result of no call", f"messages[{i}]", "fix the row")
        page.markup("\n\n<function_results>" * (place == 1) + "\n<result>")
        page.say(message.content, trained, message.weights)
        page.markup("</result>", trained)
        if place == calls:
            page.markup("\n</function_results>", trained)
            page.markup(f"\n\n{block}")


class DeepSeekV4(DSMLTurns):
    """DeepSeek V4. Reasoning of answers to earlier questions goes, unless there are tools or `keep_reasoning`; see
    `DSMLTurns`. Results and questions that follow each other share a turn of the user."""

    name = "deepseek_v4"
    block = "tool_calls"
    instructions = TOOLS_V4

    def written(self, conversation: Conversation) -> Sequence[bool]:
        messages = conversation.messages
        last = max((i for i, message in enumerate(messages) if message.role in ("user", "tool")), default=-1)
        keeps = self._keeps or bool(conversation.tools)
        return [self._thinking and (keeps or i >= last) for i in range(len(messages))]

    def ask(self, page: Page, conversation: Conversation, i: int, trained: bool, thinks: bool) -> None:
        messages = conversation.messages
        message, asks = messages[i], ("user", "tool")
        page.markup("\n\n" if i and messages[i - 1].role in asks else m.USER)
        if message.role == "user":
            page.say(message.content, trained, message.weights)
        else:
            page.markup("<tool_result>")
            page.say(message.content, trained, message.weights)
            page.markup("</tool_result>", trained)
        if i + 1 == len(messages) or messages[i + 1].role not in asks:
            page.markup(m.ASSISTANT + (m.THINK if thinks else m.THOUGHT))


def _text_of(value: Any) -> tuple[str, str]:
    """Whether a value is text, as the markup says it, and what is written for it."""
    return ("true", value) if isinstance(value, str) else ("false", json_text(value))


def _calls_of(text: str) -> tuple[Mapping[str, Any], ...]:
    """The calls that a text is; none if it is anything else."""
    matches = list(_CALL.finditer(text))
    if "".join(match[0] for match in matches) != text:
        return ()
    try:
        return tuple(call_of(match[1], _arguments_of(match[2])) for match in matches)
    except (ValueError, RecursionError):
        return ()


def _arguments_of(text: str) -> dict[str, Any]:
    """
    Raises:
        ValueError: a value that should be JSON is not.
    """
    return {key: value if kind == "true" else json.loads(value) for key, kind, value in _ARGUMENT.findall(text)}
