"""The renderer `harmony`.

    <|start|>system<|message|>You are ChatGPT, ...<|end|><|start|>developer<|message|># Instructions

    Be brief.

    <|end|><|start|>user<|message|>Hello?<|end|><|start|>assistant<|channel|>analysis<|message|>They greet.<|end|>
    <|start|>assistant<|channel|>final<|message|>Yes.<|return|>

(without the line breaks between messages). A trained message trains all that stands behind its first
`<|start|>assistant`: channels, reasoning, content, the call, and the `<|return|>` or `<|call|>` with which the model
stops. Answers to earlier questions end with `<|end|>`, as the model is shown them; that token does not train there,
since a model that says it has not stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any, Literal

from finetooth_hooks import Conversation, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Rendered, TrainOn
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import TurnRenderer, json_string, json_text

from finetooth_gptoss import schemas
from finetooth_gptoss.builtin import BUILTIN

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
RETURN, CALL, CONSTRAIN = "<|return|>", "<|call|>", "<|constrain|>"
ASSISTANT = f"{START}assistant"
ANALYSIS, FINAL = f"{CHANNEL}analysis{MESSAGE}", f"{CHANNEL}final{MESSAGE}"

_RECIPIENT = re.compile(r"\bto=functions\.([^\s<]+)")


class HarmonyOptions(Options):
    """Options of `harmony`."""

    today: str = "2025-08-05"
    """Date in the system message; fixed, so that a run gives the same tokens tomorrow. Default: the day of the models'
    release."""
    reasoning_effort: Literal["low", "medium", "high"] = "medium"
    """How much the model should think."""
    identity: str = "You are ChatGPT, a large language model trained by OpenAI."
    """First sentence of the system message."""
    builtin_tools: tuple[Literal["browser", "python"], ...] = ()
    """The models' built-in tools that the system message describes."""
    keep_reasoning: bool = False
    """Write all reasoning. The models' own template leaves out that of answers to earlier questions, and that before a
    call once an answer follows."""


def build(options: HarmonyOptions, context: Context) -> Harmony:
    """Builds the renderer of the Harmony format.

    Raises:
        RecipeError: the tokenizer has no Harmony tokens.
    """
    return Harmony(context.tokenizer, options)


class Harmony(TurnRenderer):
    """gpt-oss.

    Normalisation: the content of a message with a call is written as its reasoning. Results of tools are written
    as JSON text. Reasoning is left out as in the models' own template, and counted (`Rendered.remarks`).

    Args:
        options: what the system message says.

    Raises:
        RecipeError: the tokenizer has no Harmony tokens.
    """

    name = "harmony"
    controls = (START, END, MESSAGE, CHANNEL, RETURN, CALL)
    optional = (CONSTRAIN,)
    stops = (RETURN, CALL)

    def __init__(self, tokenizer: Tokenizer, options: HarmonyOptions) -> None:
        super().__init__(tokenizer)
        self._options = options

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """As `TurnRenderer.render`, with a remark if reasoning is left out."""
        rendered = super().render(conversation, train_on=train_on)
        messages = conversation.messages
        lost = any(_reasoning(message) and not self._thinks(messages, i) for i, message in enumerate(messages))
        return replace(rendered, remarks=("reasoning left out",)) if lost else rendered

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; a first system message is the developer's, and the system
        message of the template belongs to none.

        Raises:
            DataError: a role, a call, or a schema it cannot say.
        """
        messages = conversation.messages
        page.markup(f"{START}system{MESSAGE}{self._system(bool(conversation.tools))}{END}")
        first = int(bool(messages) and messages[0].role == "system")
        if first:
            page.message()
        self._developer(page, conversation, trained[0] if first else False)
        last_call = ""
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            where = f"messages[{i}]"
            if i < first:
                continue
            page.message()
            if message.role == "user":
                page.markup(f"{START}user{MESSAGE}")
                page.say(message.content, trains, message.weights)
                page.markup(END, trains)
            elif message.role == "tool":
                if not last_call:
                    raise self.refuse("no result of a tool without a call before it", where)
                page.markup(START)
                page.say(f"functions.{last_call}")
                page.markup(f" to=assistant{CHANNEL}commentary{MESSAGE}")
                text, weights = json_string(message.content, message.weights)
                page.say(text, trains, weights)
                page.markup(END, trains)
            elif message.role == "assistant":
                self._check(message, where)
                thinks = self._thinks(messages, i, ask=ask)
                if message.tool_calls:
                    last_call = self._call(page, message, trains, thinks, where)
                else:
                    returns = i == len(messages) - 1 and not ask
                    self._answer(page, message, trains, thinks, returns)
                    last_call = last_call if returns else ""
            else:
                after = "system message after another" if message.role == "system" else f"role {message.role!r}"
                raise self.refuse(f"no {after}", where)
        page.markup(ASSISTANT if ask else "")

    def read_tokens(self, tokens: Sequence[int]) -> Message:
        """The message that a completion says: what the channel `analysis` holds is reasoning, a call is in
        `commentary`; of tokens without channels all is content."""
        content, reasoning, calls = "", "", []
        pieces = self._pieces(list(tokens))
        if pieces is None:
            return Message("assistant", self.tokenizer.decode(tokens))
        for whole, header, body in pieces:
            recipient = _RECIPIENT.search(header)
            arguments = _object(body) if recipient else None
            if recipient and arguments is not None:
                calls.append(call_of(recipient[1], arguments))
            elif f"{CHANNEL}analysis" in header:
                reasoning += body
            else:
                content += whole if recipient else body
        return Message("assistant", content, reasoning=reasoning, tool_calls=tuple(calls))

    def _pieces(self, tokens: Sequence[int]) -> list[tuple[str, str, str]] | None:
        """Text, header and body of each message that a completion is made of; None if it is made of none.

        Borders are control tokens. Text that spells one is other tokens, and stays in the body.
        """
        message, end, start = (self._controls.ids[spelling] for spelling in (MESSAGE, END, START))
        decode = self.tokenizer.decode
        begins = [0]
        for i in range(1, len(tokens)):
            if tokens[i - 1] == end and tokens[i] == start:
                head = takewhile(lambda token: token != message, tokens[i + 1 :])
                begins += [i] * decode(list(head)).startswith("assistant")
        pieces = []
        for begin, stop in pairwise([*begins, len(tokens)]):
            piece = list(tokens[begin:stop])
            at = piece.index(message) if message in piece else -1
            if at < 0 or start in piece[bool(begin) : at]:
                return None
            ends = piece[-1] == end and stop < len(tokens)
            header = decode(piece[:at]).removeprefix(ASSISTANT if begin else "")
            pieces.append((decode(piece), header, decode(piece[at + 1 : len(piece) - ends])))
        return pieces

    def _system(self, tools: bool) -> str:
        described = "".join(BUILTIN[name] for name in ("browser", "python") if name in self._options.builtin_tools)
        return (
            f"{self._options.identity}\nKnowledge cutoff: 2024-06\nCurrent date: {self._options.today}\n\n"
            f"Reasoning: {self._options.reasoning_effort}\n\n"
            + (f"# Tools\n\n{described}" if described else "")
            + "# Valid channels: analysis, commentary, final. Channel must be included for every message."
            + ("\nCalls to these tools must go to the commentary channel: 'functions'." if tools else "")
        )

    def _developer(self, page: Page, conversation: Conversation, trains: bool) -> None:
        messages, tools = conversation.messages, conversation.tools
        message = messages[0] if messages and messages[0].role == "system" else Message("system", "")
        if not message.content and not tools:
            return
        page.markup(f"{START}developer{MESSAGE}")
        if message.content:
            page.markup("# Instructions\n\n")
            page.say(message.content, trains, message.weights)
            page.markup("\n\n")
        if tools:
            try:
                described = schemas.namespace(tools)
            except schemas.Unspeakable as problem:
                raise self.refuse(f"no markup for {problem}", "tools", "complete the schemas of the tools") from problem
            page.markup("# Tools\n\n")
            page.say(described)
        page.markup(END, trains)

    def _thinks(self, messages: Sequence[Message], i: int, *, ask: bool = False) -> bool:
        """The reasoning of a message is written: no answer follows it."""
        if messages[i].role != "assistant" or self._options.keep_reasoning:
            return messages[i].role == "assistant"
        if messages[i].tool_calls:
            return not any(message.role == "assistant" and not message.tool_calls for message in messages[i + 1 :])
        return i == len(messages) - 1 and not ask

    def _answer(self, page: Page, message: Message, trains: bool, thinks: bool, returns: bool) -> None:
        page.markup(ASSISTANT)
        if thinks and message.reasoning:
            page.markup(ANALYSIS, trains)
            page.say(message.reasoning, trains, message.reasoning_weights)
            page.markup(END + ASSISTANT, trains)
        page.markup(FINAL, trains)
        page.say(message.content, trains, message.weights)
        page.markup(RETURN if returns else END, trains and returns)

    def _call(self, page: Page, message: Message, trains: bool, thinks: bool, where: str) -> str:
        """Writes a message with a call.

        Returns:
            the name of the tool.
        """
        call = message.tool_calls[0]
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):  # written as a JSON text
            name, _ = function_call({"function": {**function, "arguments": {}}}, where)
            arguments = function["arguments"]
        else:
            name, arguments = function_call(call, where)
        page.markup(ASSISTANT)
        if thinks and _reasoning(message):
            own = bool(message.reasoning)
            page.markup(ANALYSIS, trains)
            page.say(_reasoning(message), trains, message.reasoning_weights if own else message.weights)
            page.markup(END + ASSISTANT, trains)
        page.markup(" to=", trains)
        page.say(f"functions.{name}", trains)
        page.markup(f"{CHANNEL}commentary json{MESSAGE}", trains)
        page.say(json_text(arguments), trains)
        page.markup(CALL, trains)
        return name

    def _check(self, message: Message, where: str) -> None:
        for text in (message.content, message.reasoning):
            if ANALYSIS in text or FINAL in text:
                raise self.refuse("no channels inside a message", where, "give reasoning and content as two fields")
        if len(message.tool_calls) > 1:
            raise self.refuse("one call in a message at most", where, "write each call as a message of its own")
        if message.tool_calls and message.content and message.reasoning:
            raise self.refuse("no content next to a call that has reasoning", where, "join the two")


def _reasoning(message: Message) -> str:
    return message.reasoning or (message.content if message.tool_calls else "")


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
