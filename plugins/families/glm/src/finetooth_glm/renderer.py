"""The renderers `glm4_moe` and `glm4_7`.

    [gMASK]<sop><|system|>
    You are ...<|user|>
    Hello?<|assistant|>
    <think></think>
    Yes.<|user|>

A message ends where the next one begins: a model stops with `<|user|>` when it has answered, and with `<|observation|>`
when it waits for a tool. A trained message trains its think block, its content, its calls and that token. Behind the
last answer of a conversation the models' own template writes nothing, so that its end could not train; here the token
stands there, unless `close` is off. GLM-4.7 writes the same without the line feeds, and opens the think block in the
prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Rendered, TrainOn, Weighted
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import TurnRenderer, json_text, last_question, trimmed
from finetooth_toolbox.messages.chat_templates import foreign_template

SYSTEM, USER, ASSISTANT, OBSERVATION = "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"
MASK, OPENING, DOCUMENT_END = "[gMASK]", "<sop>", "<|endoftext|>"
THINK, THOUGHT = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
RESPONSE, RESPONSE_END = "<tool_response>", "</tool_response>"
NO_THINKING = "/nothink"
OPENERS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": OBSERVATION}

TOOLS_BEFORE = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
TOOLS_AFTER = (
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
)


R = TypeVar("R", bound="GLM4Moe")


class Calls:
    """How calls are written and read.

    Args:
        feed: what stands between the tags.
    """

    def __init__(self, feed: str) -> None:
        self.feed = feed
        self.argument = re.compile(f"{KEY}(.*?){KEY_END}{feed}{VALUE}(.*?){VALUE_END}{feed}", re.DOTALL)
        opening = f"{feed}?" if feed else ""
        pattern = f"{opening}{CALL}([^\n<]+){feed}((?:{self.argument.pattern})*?){CALL_END}"
        self.call = re.compile(pattern, re.DOTALL)

    @property
    def example(self) -> str:
        """How the system message shows a call."""
        pairs = (f"{KEY}{{arg-key-{i}}}{KEY_END}{self.feed}{VALUE}{{arg-value-{i}}}{VALUE_END}" for i in (1, 2))
        return self.feed.join([f"{CALL}{{function-name}}", *pairs, "...", CALL_END])

    def reads_back(self, name: str, arguments: Sequence[tuple[str, str]]) -> bool:
        """A call with these texts is read as they are."""
        feed = self.feed
        text = "".join(f"{KEY}{key}{KEY_END}{feed}{VALUE}{value}{VALUE_END}{feed}" for key, value in arguments)
        match = self.call.fullmatch(f"{CALL}{name}{feed}{text}{CALL_END}")
        tagged = any(CALL in part for part in (name, *(text_ for pair in arguments for text_ in pair)))
        read = match is not None and match[1] == name and self.argument.findall(match[2]) == [*arguments]
        return read and not tagged

    def before(self, text: str, end: int) -> tuple[int, Mapping[str, Any]] | None:
        """The call that ends at a character, and where it begins."""
        begin = text.rfind(CALL, 0, end)
        begin -= bool(self.feed) and text[:begin].endswith(self.feed) if begin > 0 else 0
        match = self.call.fullmatch(text, begin, end) if begin >= 0 else None
        if match is None:
            return None
        arguments = {key: _value(value) for key, value in self.argument.findall(match[2])}
        return begin, call_of(match[1], arguments)


class GLMOptions(Options):
    """Options of `glm4_moe`."""

    thinking: bool = True
    """If false, every question ends with `/nothink` and the prompt with an empty think block."""
    keep_reasoning: bool = False
    """Also write the reasoning of answers to earlier questions, which the models' own template leaves out."""
    close: bool = True
    """Write the model's stop token after the last answer of a conversation."""


class GLM47Options(GLMOptions):
    """Options of `glm4_7`."""

    thinking: bool = False
    """Whether the prompt for an answer opens a think block (`<think>`) or has closed it (`</think>`), as with the
    template's `enable_thinking`. An answer without reasoning is written as one to the closed block. With false, an
    answer with reasoning is refused, since no prompt would lead to it."""


def build(options: GLMOptions, context: Context) -> GLM4Moe:
    """Builds the renderer of GLM 4.5, and notes where the chat template differs.

    Raises:
        RecipeError: the tokenizer has no GLM tokens.
    """
    return noted(GLM4Moe(context.tokenizer, options), options, context)


def build_4_7(options: GLM47Options, context: Context) -> GLM47:
    """Builds the renderer of GLM 4.7, and notes where the chat template differs.

    Raises:
        RecipeError: the tokenizer has no GLM tokens.
    """
    return noted(GLM47(context.tokenizer, options), options, context)


def noted(
    renderer: R,
    options: GLMOptions,
    context: Context,
    others: str = "GLM-4.5 and 4.6 speak as glm4_moe, GLM-4.7 as glm4_7",
    **variables: Any,
) -> R:
    """The renderer; a note if the model's own template says something else, since a config does not tell GLM-4.6 from
    4.7. The template writes no token behind the last answer.

    Args:
        others: which models speak how.
        variables: what else the template reads, as the options have it.
    """
    tokenizer = context.tokenizer
    as_theirs = type(renderer)(tokenizer, options.model_copy(update={"close": False}))
    variables |= {} if options.thinking else {"enable_thinking": False}
    if difference := foreign_template(as_theirs, renderer.name, tokenizer, **variables):
        context.note(f"{difference}; {others}")
    return renderer


class GLM4Moe(TurnRenderer):
    """GLM-4.5 and GLM-4.6.

    Normalisation: blanks around content and reasoning are left out. Without reasoning of its own, a content that spells
    `</think>` is split there into reasoning and content, as in the template; one with a second block, or text before
    the first, is refused, since the template drops it.
    Reasoning of answers to earlier questions is left out and counted (`Rendered.remarks`); the empty think block in its
    place does not train. Arguments that are text are written as they are, so that text that reads as another JSON
    value comes back as that value.

    Args:
        options: what differs between conversations.

    Raises:
        RecipeError: the tokenizer has no GLM tokens.
    """

    name = "glm4_moe"
    controls = (MASK, OPENING, SYSTEM, USER, ASSISTANT, OBSERVATION)
    optional = (
        DOCUMENT_END, THINK, THOUGHT, CALL, CALL_END, KEY, KEY_END, VALUE, VALUE_END, RESPONSE, RESPONSE_END,
        NO_THINKING,
    )  # fmt: skip
    stops = (USER, OBSERVATION, DOCUMENT_END)
    calls = Calls("\n")
    silence = NO_THINKING
    """Behind a question, where the model is not to think."""
    preface = ""
    """Before all messages."""
    trims: ClassVar[bool] = True
    """Blanks around reasoning are left out."""

    def __init__(self, tokenizer: Tokenizer, options: GLMOptions) -> None:
        super().__init__(tokenizer)
        self._options = options
        # without thinking nothing is ever left out; the token behind the last answer opens the next message
        self.extension = options.close and (options.keep_reasoning or not options.thinking)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        rendered = super().render(conversation, train_on=train_on)
        last = last_question(conversation.messages)
        lost = any(
            _split_answer(message)[1] and not self._thinks(i, last) for i, message in enumerate(conversation.messages)
        )
        return replace(rendered, remarks=("reasoning left out",)) if lost else rendered

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message, from its opening token; tools belong to none.

        Raises:
            DataError: a call or a role it cannot say, reasoning though thinking is off.
        """
        messages = conversation.messages
        page.markup(MASK + OPENING + self.preface)
        feed = self.calls.feed
        if conversation.tools:
            page.markup(SYSTEM + TOOLS_BEFORE)
            for tool in conversation.tools:
                page.say(json_text(self.described(tool)))
                page.markup("\n")
            page.markup(TOOLS_AFTER + self.calls.example)
        last = last_question(messages)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if message.role not in OPENERS:
                raise self.refuse(f"no role {message.role!r}", f"messages[{i}]")
            page.message()
            before = messages[i - 1] if i else None
            if before is None or not before.role == message.role == "tool":
                opener = OPENERS[message.role]
                ends = before is not None and before.role == "assistant" and trained[i - 1] and opener in self.stops
                page.markup(opener, ends)
            if message.role == "assistant":
                self._answer(page, message, trains, self._thinks(i, last), f"messages[{i}]")
            elif message.role == "tool":
                page.markup(f"{feed}{RESPONSE}{feed}")
                page.say(message.content, trains, message.weights)
                page.markup(f"{feed}{RESPONSE_END}", trains)
            else:
                page.markup(feed)
                page.say(message.content, trains, message.weights)
                silent = message.role == "user" and not self._options.thinking and self.silence
                page.markup(self.silence if silent and not message.content.endswith(self.silence) else "")
        if ask:
            page.markup(ASSISTANT + self._asks())
        elif self._options.close and messages and messages[-1].role == "assistant":
            page.markup(OBSERVATION if messages[-1].tool_calls else USER, trained[-1])

    def read(self, text: str) -> Message:
        """The message that a completion says."""
        reasoning, rest = "", text.lstrip("\n")
        if rest.startswith(THINK):  # a block that was not closed is reasoning to its end
            reasoning, _, text = rest.removeprefix(THINK).partition(THOUGHT)
        at = len(text)
        calls: list[Mapping[str, Any]] = []
        while before := self.calls.before(text, at):
            at, call = before
            calls.insert(0, call)
        reasoning = reasoning.strip() if self.trims else reasoning
        return Message("assistant", text[:at].strip(), reasoning=reasoning, tool_calls=tuple(calls))

    def described(self, tool: Mapping[str, Any]) -> Mapping[str, Any]:
        """A tool as the model sees it."""
        return tool

    def _asks(self) -> str:
        """What the prompt says behind the token that opens an answer."""
        return "" if self._options.thinking else f"\n{THINK}{THOUGHT}"

    def _thinks(self, i: int, last: int) -> bool:
        return i > last or self._options.keep_reasoning

    def _answer(self, page: Page, message: Message, trains: bool, thinks: bool, where: str) -> None:
        if _loses(message):
            raise self.refuse(
                "one think block, and it stands first; the content has text before it, or a second",
                where,
                "fix the row",
            )
        (start, stop), own, (begin, end) = _split_answer(message, trim=self.trims)
        text = message.reasoning or message.content
        weights = message.reasoning_weights if message.reasoning else message.weights
        if thinks and own and not self._options.thinking:
            raise self.refuse("no reasoning while thinking is off", where, "remove it, or set thinking: true")
        self._block(page, (text, weights, (start, stop)), trains, thinks, own)
        if begin < end:
            page.markup(self.calls.feed, trains)
            page.say(message.content, trains, message.weights, cut=(begin, end))
        for call in message.tool_calls:
            self._call(page, call, trains, where)

    def _block(self, page: Page, thought: Thought, trains: bool, thinks: bool, own: bool) -> None:
        """The think block.

        Args:
            thinks: reasoning is written.
            own: the answer has some.
        """
        # the block of an answer whose reasoning is left out is not what a model should say
        block = trains and self._options.thinking and (thinks or not own)
        page.markup(f"\n{THINK}", block)
        if thinks:
            self._say_thought(page, thought, trains)
        page.markup(THOUGHT, block)

    def _say_thought(self, page: Page, thought: Thought, trains: bool) -> None:
        text, weights, cut = thought
        page.say(text, trains, weights, cut=cut)

    def _call(self, page: Page, call: Mapping[str, Any], trains: bool, where: str) -> None:
        """
        Raises:
            DataError: it is not of the OpenAI shape, or spells the markup, so that it could not be read back.
        """
        name, arguments = function_call(call, where)
        pairs = [(str(key), value if isinstance(value, str) else json_text(value)) for key, value in arguments.items()]
        if not self.calls.reads_back(name, pairs):
            spelled = f"{name} with {dict(arguments)!r:.80}"
            raise self.refuse(f"no markup for a call that spells its markup and ends early: {spelled}", where)
        feed = self.calls.feed
        page.markup(f"{feed}{CALL}", trains)
        page.say(name, trains)
        page.markup(feed, trains)
        for key, value in pairs:
            page.markup(KEY, trains)
            page.say(key, trains)
            page.markup(f"{KEY_END}{feed}{VALUE}", trains)
            page.say(value, trains)
            page.markup(f"{VALUE_END}{feed}", trains)
        page.markup(CALL_END, trains)


class GLM47(GLM4Moe):
    """GLM-4.7 and GLM-4.7-Flash.

    Normalisation: as `GLM4Moe`. The prompt opens the think block, or has closed it if `thinking` is off, so neither
    trains: of an answer with reasoning, the reasoning and `</think>` do, of one without only what follows `</think>`.
    """

    name = "glm4_7"
    calls = Calls("")
    silence = ""

    def read(self, text: str) -> Message:
        if self._options.thinking and not text.startswith(THINK):
            text = THINK + text  # the prompt has opened it
        return super().read(text)

    def _asks(self) -> str:
        return THINK if self._options.thinking else THOUGHT

    def _block(self, page: Page, thought: Thought, trains: bool, thinks: bool, own: bool) -> None:
        says = thinks and own  # blanks are reasoning of nothing, which has its block, as in the template
        if says:
            page.markup(THINK)
            self._say_thought(page, thought, trains)
        page.markup(THOUGHT, trains and says)


Thought = tuple[str, Sequence[Weighted], tuple[int, int]]
"""A text with reasoning in it, what its characters weigh, and where in it the reasoning stands."""


def _split_answer(message: Message, *, trim: bool = True) -> tuple[tuple[int, int], bool, tuple[int, int]]:
    """Of an answer: the range of its reasoning (in `reasoning`, or in `content` if it has none), whether there is any,
    and the range of what it says in `content`.

    Args:
        trim: without the blanks around the reasoning.
    """
    content = message.content
    if message.role != "assistant":
        return (0, 0), False, (0, len(content))
    if message.reasoning or THOUGHT not in content:
        whole = (0, len(message.reasoning))
        return trimmed(message.reasoning) if trim else whole, bool(message.reasoning), trimmed(content)
    stop = content.index(THOUGHT)
    start = content.rfind(THINK, 0, stop)
    start = 0 if start < 0 else start + len(THINK)
    inside, behind = trimmed(content[start:stop]) if trim else (0, stop - start), content.rindex(THOUGHT) + len(THOUGHT)
    begin, end = trimmed(content[behind:])
    own = bool(content[start:stop].strip("\n"))
    return (start + inside[0], start + inside[1]), own, (behind + begin, behind + end)


def _loses(message: Message) -> bool:
    """The template would drop something of an answer's content: it holds more than one think block and what follows."""
    content = message.content
    if message.reasoning or THOUGHT not in content:
        return False
    before = content[: content.index(THOUGHT)]
    return content.count(THOUGHT) > 1 or bool(before[: max(before.rfind(THINK), 0)].strip())


def _value(text: str) -> Any:
    """What is not text is written as JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def _refuse(spelling: str) -> float:
    raise ValueError(spelling)
