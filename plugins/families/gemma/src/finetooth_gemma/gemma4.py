"""The renderer `gemma4`.

    <bos><|turn>system
    <|think|>
    Be brief.<turn|>
    <|turn>user
    What time is it?<turn|>
    <|turn>model
    <|channel>thought
    I look.
    <channel|><|tool_call>call:clock{zone:<|"|>UTC<|"|>}<tool_call|>
    <|tool_response>response:clock{value:<|"|>12:00<|"|>}<tool_response|>Noon.<turn|>

(all of the last two lines is one). A trained answer trains its reasoning with its channel, its calls and its content,
and what ends it: `<turn|>`, or behind calls `<|tool_response>`, at which the model stops. Headers and the line feed
after `<turn|>` never train. Text that spells a special token stays plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from finetooth_hooks import Conversation, Message, Options, Rendered
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import TrainOn
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.bare_values import QUOTE, read_arguments
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import TurnRenderer, last_question, noted, trimmed
from finetooth_toolbox.messages.chat_templates import PROBES, render_template, shaped

from finetooth_gemma.gemma4_values import Pieces, arguments, declaration

BEGIN, DOCUMENT_END = "<bos>", "<eos>"
TURN, TURN_END = "<|turn>", "<turn|>"
THINK, CHANNEL, CHANNEL_END = "<|think|>", "<|channel>", "<channel|>"
TOOL, TOOL_END = "<|tool>", "<tool|>"
CALL, CALL_END = "<|tool_call>", "<tool_call|>"
RESULT, RESULT_END = "<|tool_response>", "<tool_response|>"
SPEAKERS = {"system": "system", "user": "user", "assistant": "model"}
ROLES = (*SPEAKERS, "tool")
THOUGHT = "thought\n"
EMPTY = CHANNEL + THOUGHT + CHANNEL_END
Version = Literal["2026-07", "earlier"]
EmptyThought = Literal["none", "prompt", "asked", "all"]
THINKING = (
    {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes.", "reasoning_content": "A greeting."},
)  # fmt: skip
"""A conversation by which versions are told from each other."""
LEFT_OUT = "reasoning left out"


class Gemma4Options(Options):
    """Options of `gemma4`."""

    thinking: bool = False
    """Whether the model thinks before it answers: the system message begins with `<|think|>`, and after a tool's result
    the prompt opens the channel of thoughts, as with the template's `enable_thinking`."""
    version: Literal["auto"] | Version = "auto"
    """Version of the template: `2026-07`, the revision of July 2026, or `earlier`, the one from the release until then:
    reasoning stands only before calls, nothing ends a turn between a result and the next question, the prompt after a
    result opens no channel, and no value is `None`. `auto` follows the model's own template."""
    empty_thought: Literal["auto"] | EmptyThought = "auto"
    """Where an empty channel of thoughts opens an answer without reasoning while `thinking` is off: nowhere (`none`),
    in the prompt alone (`prompt`), and so in answers to the last question too (`asked`), or also in earlier ones
    (`all`). `auto` does as the model's own template: `none` for E2B and E4B; for 12B and larger `all` or, where the
    template writes it in the prompt alone, `asked`, so that answers train behind the prompt that asks for them."""


def build(options: Gemma4Options, context: Context) -> Gemma4:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no tokens of Gemma 4.
    """
    own = context.tokenizer.chat_template
    written = None if own is None else render_template(own, THINKING, bos_token=BEGIN)
    detected: Version = "earlier" if written is not None and "A greeting." not in written else "2026-07"
    version = detected if options.version == "auto" else options.version
    empty = _empty_thought(own) if options.empty_thought == "auto" else options.empty_thought
    renderer = Gemma4(context.tokenizer, thinking=options.thinking, version=version, empty_thought=empty)
    theirs = Gemma4(
        context.tokenizer, thinking=options.thinking, version=version,
        empty_thought="prompt" if empty == "asked" else empty,
    )  # fmt: skip
    return noted(renderer, context, theirs, enable_thinking=options.thinking)


def _empty_thought(template: str | None) -> EmptyThought:
    """Where a template opens answers with an empty channel of thoughts."""
    if template is None or not (render_template(template, THINKING[:1], prompt=True) or "").endswith(EMPTY):
        return "none"
    answered = [shaped(message) for message in PROBES[0].messages]
    return "all" if EMPTY in (render_template(template, answered) or "") else "asked"


class Gemma4(TurnRenderer):
    """Gemma 4, in the revision of July 2026 of its template or those before it, for text conversations.

    Normalisation: blanks around contents are trimmed. Answers before the last question lose their reasoning, which does
    not train then, and is counted (`Rendered.remarks`). Calls lose their ids; keys of their arguments are sorted.
    Results are texts.

    Args:
        thinking: the model is asked to think.
        version: of the template.
        empty_thought: where an empty channel of thoughts opens an answer without reasoning, if it is not asked to
            think. The channel is the prompt's and does not train.

    Raises:
        RecipeError: the tokenizer has no tokens of Gemma 4.
    """

    name = "gemma4"
    controls = (
        BEGIN, TURN, TURN_END, THINK, CHANNEL, CHANNEL_END, TOOL, TOOL_END, CALL, CALL_END, RESULT, RESULT_END, QUOTE,
    )  # fmt: skip
    optional = (DOCUMENT_END,)
    stops = (TURN_END, RESULT, DOCUMENT_END)
    extension = False

    def __init__(
        self, tokenizer: Tokenizer, *, thinking: bool = False, version: Version = "2026-07",
        empty_thought: EmptyThought = "none",
    ) -> None:  # fmt: skip
        super().__init__(tokenizer)
        self._empty: EmptyThought = "none" if thinking else empty_thought
        self._thinking, self._earlier = thinking, version == "earlier"
        self._opens = thinking and version != "earlier"
        """The prompt behind the result of a tool opens the channel of thoughts."""

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        rendered = super().render(conversation, train_on=train_on)
        before = conversation.messages[: last_question(conversation.messages)]
        lost = any(message.role == "assistant" and message.reasoning for message in before)
        return replace(rendered, remarks=(*rendered.remarks, LEFT_OUT)) if lost else rendered

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """What opens the first result of a call ends the message that calls, and is in its range.

        Raises:
            DataError: turns that do not fit each other, a content next to calls, calls without results before the end.
        """
        self._check(conversation)
        messages = conversation.messages
        page.markup(BEGIN)
        self._open(page, conversation, trained)
        question = last_question(messages)
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if i == 0 and message.role == "system":
                continue
            page.message()
            before = messages[i - 1] if i else None
            if message.role == "tool":
                self._result(page, messages, i, trains)
                continue
            follows = message.role == "assistant" and before is not None and before.role == "tool"
            if not follows:
                page.markup(f"{TURN}{SPEAKERS[message.role]}\n")
                empty = self._empty == "all" or (self._empty == "asked" and i > question)
                page.markup(EMPTY * (empty and message.role == "assistant" and not message.reasoning))
            if message.reasoning and i > question:
                page.markup(CHANNEL + THOUGHT, trains and not (follows and self._opens))
                page.say(message.reasoning, trains, message.reasoning_weights)
                page.markup(f"\n{CHANNEL_END}", trains)
            if message.tool_calls:
                self._calls(page, message, trains, f"messages[{i}]")
                continue
            page.say(message.content, trains, message.weights, cut=trimmed(message.content))
            page.markup(TURN_END, trains)
            page.markup("\n")
        if ask:
            self._ask(page, messages)

    def read_tokens(self, tokens: Sequence[int]) -> Message:
        ids, rest, reasoning = self._controls.ids, list(tokens), ""
        if ids[CHANNEL_END] in rest:  # a prompt may have opened the channel
            end = rest.index(ids[CHANNEL_END])
            thought = rest[1:end] if rest[0] == ids[CHANNEL] else rest[:end]
            reasoning = self.tokenizer.decode(thought).removeprefix(THOUGHT).removesuffix("\n")
            rest = rest[end + 1 :]
        content: list[int] = []
        calls = []
        while ids[CALL] in rest:
            at = rest.index(ids[CALL])
            end = rest.index(ids[CALL_END], at) if ids[CALL_END] in rest[at:] else len(rest)
            content += rest[:at]
            call = self._call(rest[at + 1 : end])
            if call is None:
                return Message("assistant", self.tokenizer.decode([*content, *rest[at:]]).strip(), reasoning=reasoning)
            calls.append(call)
            rest = rest[end + 1 :]
        text = self.tokenizer.decode([*content, *rest]).strip()
        return Message("assistant", text, reasoning=reasoning, tool_calls=tuple(calls))

    def _call(self, tokens: Sequence[int]) -> dict[str, object] | None:
        """The call between its tokens; None if it is broken."""
        pieces: list[list[int]] = [[]]
        for token in tokens:
            if token == self._controls.ids[QUOTE]:
                pieces.append([])
            else:
                pieces[-1].append(token)
        texts = [self.tokenizer.decode(piece) for piece in pieces]
        name, brace, rest = texts[0].partition("{")
        values = read_arguments([brace + rest, *texts[1:]])
        if values is None or not name.startswith("call:"):
            return None
        return call_of(name.removeprefix("call:"), values)

    def _open(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> None:
        """The system message, with the request to think and the tools, as far as there are any."""
        messages, tools = conversation.messages, conversation.tools
        own = messages[0] if messages and messages[0].role == "system" else None
        if own is None and not tools and not self._thinking:
            return
        trains = own is not None and trained[0]
        if own is not None:
            page.message()
        page.markup(f"{TURN}system\n" + f"{THINK}\n" * self._thinking)
        if own is not None:
            page.say(own.content, trains, own.weights, cut=trimmed(own.content))
        for tool in tools:
            page.markup(TOOL)
            self._write(page, declaration(tool))
            page.markup(TOOL_END)
        page.markup(TURN_END, trains)
        page.markup("\n")

    def _calls(self, page: Page, message: Message, trains: bool, where: str) -> None:
        for call in message.tool_calls:
            name, values = function_call(call, where)
            page.markup(f"{CALL}call:", trains)
            page.say(name, trains)
            page.markup("{", trains)
            self._write(page, arguments(values), trains)
            page.markup("}" + CALL_END, trains)
        page.markup(RESULT, trains)

    def _result(self, page: Page, messages: Sequence[Message], index: int, trains: bool) -> None:
        message = messages[index]
        if messages[index - 1].role == "tool":
            page.markup(RESULT)
        page.markup("response:")
        page.say(_called(messages, index))
        page.markup("{value:")
        page.markup(QUOTE)
        page.say(message.content, trains, message.weights)
        page.markup(QUOTE)
        page.markup("}" + RESULT_END, trains)
        following = messages[index + 1] if index + 1 < len(messages) else None
        if not self._earlier and following is not None and following.role not in ("tool", "assistant"):
            page.markup(TURN_END)
            page.markup("\n")

    def _write(self, page: Page, pieces: Pieces, trained: bool = False) -> None:
        for text, spoken in pieces:
            if spoken:
                page.say(text, trained)
            elif text:
                page.markup("None" if self._earlier and text == "null" else text, trained)

    def _ask(self, page: Page, messages: Sequence[Message]) -> None:
        last = messages[-1] if messages else None
        if last is not None and last.role == "tool":
            page.markup((CHANNEL + THOUGHT) * self._opens)
        elif last is None or not last.tool_calls:
            page.markup(f"{TURN}model\n" + EMPTY * (self._empty != "none"))

    def _check(self, conversation: Conversation) -> None:
        self.check_texts(conversation, ROLES, reasoning=True, calls=True)
        messages = conversation.messages
        question = last_question(messages)
        for i, message in enumerate(messages):
            where, before = f"messages[{i}]", messages[i - 1] if i else None
            called = before is not None and bool(before.tool_calls)
            if message.role == "tool" and not (called or (before is not None and before.role == "tool")):
                raise self.refuse("no result without a call", where, "remove it, or add its call")
            if message.role != "tool" and called:
                raise self.refuse("no calls without their results", f"messages[{i - 1}]", "add the results")
            if message.role == "assistant" and before is not None and before.role == "assistant":
                raise self.refuse("two answers after one another", where, "join them")
            if message.tool_calls and message.content.strip():
                raise self.refuse("no place for content next to tool calls", where, "leave one of them out")
            follows = before is not None and before.role == "tool"
            if message.reasoning and i > question and not follows and self._empty in ("asked", "all"):
                raise self.refuse("no reasoning while thinking is off", where, "remove it, or set thinking: true")
            if self._earlier and message.reasoning and i > question and not message.tool_calls:
                problem = "reasoning only before calls, as the template before July 2026 has it"
                raise self.refuse(problem, where, "remove it, or set version: 2026-07")


def _called(messages: Sequence[Message], index: int) -> str:
    """The function that a result is of: by its id among the calls before it, else as it names it."""
    result, name = messages[index], messages[index].name or "unknown"
    calling = next(message for message in reversed(messages[:index]) if message.role != "tool")
    for call in calling.tool_calls:
        if (call.get("id") or "") == result.tool_call_id:
            name = str(call["function"]["name"])
    return name
