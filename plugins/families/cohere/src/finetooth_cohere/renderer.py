"""The renderer `cohere2`.

    <|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># System Preamble ...<|END_OF_TURN_TOKEN|>
    <|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello?<|END_OF_TURN_TOKEN|>
    <|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>Yes.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>

all without line feeds between the turns. A trained message trains from behind the prompt up to and with
`<|END_OF_TURN_TOKEN|>`. One that calls tools says what it plans, and the calls as JSON:

    <|START_THINKING|>Look.<|END_THINKING|><|START_ACTION|>[
        {"tool_call_id": "0", "tool_name": "clock", "parameters": {}}
    ]<|END_ACTION|><|END_OF_TURN_TOKEN|>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Conversation, Message
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call
from finetooth_rendering.turns import TurnRenderer, json_string, json_text
from finetooth_toolbox.messages.chat_templates import PROBES, render_template, shaped

from finetooth_cohere.preamble import (
    CHATBOT,
    END,
    RESPONSE,
    SAID,
    SHOWN,
    START,
    SYSTEM,
    TOOL_BEGIN,
    TOOL_END,
    TOOL_JOIN,
    USER,
    Foreign,
    bare_preamble,
    read_preamble,
)

RESPONSE_END = "<|END_RESPONSE|>"
THINKING, THINKING_END = "<|START_THINKING|>", "<|END_THINKING|>"
ACTION, ACTION_END = "<|START_ACTION|>", "<|END_ACTION|>"
RESULT, RESULT_END = "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"
BOS = "<BOS_TOKEN>"
SPEAKERS = {"system": SYSTEM, "user": USER, "assistant": CHATBOT, "tool": SYSTEM}
ADVICE = "data.renderer: jinja follows the model's own chat template"


def build(context: Context) -> Cohere2:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer has no tokens of Cohere's.
    """
    renderer = Cohere2(context.tokenizer)
    if difference := renderer.difference():
        context.note(f"renderer cohere2: {difference}; {ADVICE}")
    return renderer


class Cohere2(TurnRenderer):
    """Command R7B and Tiny Aya.

    What a model says in its system turn, and how it lists tools, is read off its own chat template. Without a template
    that writes Cohere's turns it says nothing but the system message.

    Raises:
        RecipeError: the tokenizer has no tokens of Cohere's.
    """

    name = "cohere2"
    controls = (START, END, SYSTEM, USER, CHATBOT, RESPONSE, RESPONSE_END)
    optional = (BOS, THINKING, THINKING_END, ACTION, ACTION_END, RESULT, RESULT_END)
    stops = (END,)
    extension = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._foreign = "the model has no chat template, so its system turn says nothing but the system message"
        self._preamble = bare_preamble(**_variables(tokenizer))
        if tokenizer.chat_template is not None:
            try:
                self._preamble = read_preamble(tokenizer.chat_template, **_variables(tokenizer))
                self._foreign = ""
            except Foreign as foreign:
                self._foreign = f"the model's own chat template does not write cohere2, {foreign}"

    def difference(self) -> str:
        """In words where the template says something else in a conversation without tools; empty if nowhere."""
        if self._foreign:
            return self._foreign
        for probe in (probe for probe in PROBES if not probe.tools):
            messages = [shaped(message) for message in probe.messages]
            expected = render_template(self.tokenizer.chat_template or "", messages, **_variables(self.tokenizer))
            tokens = self.render(probe).tokens
            # Command R7B's writes the beginning of a further answer behind every conversation
            spoken = (expected or "").removesuffix(f"{START}{CHATBOT}")
            if tokens != tuple(self.tokenizer.encode(spoken, special=True)):
                return f"the model's own chat template says {expected!r}, not {self.tokenizer.decode(tokens)!r}"
        return ""

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message, from its opening token; that of the system message is in the
        midst of the system turn.

        Raises:
            DataError: a role, call or reasoning that it cannot say.
        """
        messages = conversation.messages
        if conversation.tools:
            self._check_tools("tools")
        first = self._system_turn(page, conversation, trained)
        calls = 0
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            if i < first:
                continue
            where = f"messages[{i}]"
            if message.role not in SPEAKERS:
                raise self.refuse(f"no role {message.role!r}", where)
            page.message()
            if message.role == "tool":
                follows = i > 0 and messages[i - 1].role == "tool"
                more = i + 1 < len(messages) and messages[i + 1].role == "tool"
                self._result(page, message, trains, _call_place(self, messages, i), (follows, more))
                continue
            page.markup(START + SPEAKERS[message.role])
            if message.role != "assistant":
                page.say(message.content, trains, message.weights)
            elif message.tool_calls:
                self._calls(page, message, trains, calls, where)
                calls += len(message.tool_calls)
            else:
                self._response(page, message, trains, where)
            page.markup(END, trains)
        if ask:
            page.markup(START + CHATBOT + (RESPONSE if self._preamble.opens else ""))

    def read(self, text: str) -> Message:
        """The message that a completion says; calls with the numbers that the model gave them."""
        plan, rest = "", text
        if rest.startswith(THINKING):  # a plan that was not closed is one to its end
            plan, _, rest = rest.removeprefix(THINKING).partition(THINKING_END)
        if rest.startswith(ACTION) and rest.endswith(ACTION_END):
            calls = _calls_of(rest.removeprefix(ACTION).removesuffix(ACTION_END))
            if calls is not None:
                return Message("assistant", "", reasoning=plan, tool_calls=calls)
        content = rest.removeprefix(RESPONSE).removesuffix(RESPONSE_END)
        return Message("assistant", content, reasoning=plan)

    def _system_turn(self, page: Page, conversation: Conversation, trained: Sequence[bool]) -> int:
        """Write the system turn.

        Returns:
            how many messages it holds. An empty system message has a turn of its own, as in the templates.
        """
        messages = conversation.messages
        has_system = bool(messages and messages[0].role == "system" and messages[0].content)
        for part in self._preamble.parts(has_system, bool(conversation.tools)):
            if part == SAID:
                page.message()
                page.say(messages[0].content, trained[0], messages[0].weights)
            elif part == SHOWN:
                for i, tool in enumerate(conversation.tools):
                    page.markup(TOOL_JOIN if i else "")
                    self._tool(page, tool, f"tools[{i}]")
            else:
                page.markup(part)
        return int(has_system)

    def _tool(self, page: Page, tool: Mapping[str, Any], where: str) -> None:
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise self.refuse("no markup for a tool without function and name", where, "fix the row")
        # the templates put name and description between quotes as they are
        page.markup(TOOL_BEGIN)
        page.say(function["name"])
        page.markup('", "description": "')
        page.say(str(function.get("description", "")))
        page.markup('", "parameters": ')
        page.say(json_text(function.get("parameters", {})))
        page.markup(TOOL_END)

    def _response(self, page: Page, message: Message, trains: bool, where: str) -> None:
        if message.reasoning:
            raise self.refuse("a place for reasoning only before calls of tools", where, "remove it")
        page.markup(RESPONSE, trains and not self._preamble.opens)
        page.say(message.content, trains, message.weights)
        page.markup(RESPONSE_END, trains)

    def _calls(self, page: Page, message: Message, trains: bool, number: int, where: str) -> None:
        """
        Args:
            number: of the first call.
        """
        self._check_tools(where)
        if message.content.strip():
            raise self.refuse(
                "no place for content next to calls", where, "make it reasoning, which is what the model plans"
            )
        page.markup(THINKING, trains)
        page.say(message.reasoning, trains, message.reasoning_weights)
        page.markup(f"{THINKING_END}{ACTION}[\n", trains)
        for i, call in enumerate(message.tool_calls):
            name, arguments = function_call(call, where)
            if json_text(name) != f'"{name}"':
                raise self.refuse(f"no markup for a call of {name!r}", where, "give the tool another name")
            page.markup(f'{TOOL_JOIN if i else ""}    {{"tool_call_id": "{number + i}", "tool_name": "', trains)
            page.say(name, trains)
            page.markup('", "parameters": ', trains)
            page.say(json_text(arguments), trains)
            page.markup("}", trains)
        page.markup(f"\n]{ACTION_END}", trains)

    def _result(self, page: Page, message: Message, trains: bool, number: int, around: tuple[bool, bool]) -> None:
        """Write the result of a tool.

        Args:
            number: of its call.
            around: whether another result stands before it, and behind.
        """
        follows, more = around
        page.markup(",\n" if follows else f"{START}{SYSTEM}{RESULT}[\n")
        page.markup(f'    {{\n        "tool_call_id": "{number}",\n        "results": {{\n            "0": ')
        page.say(*_quoted(message, trains))
        page.markup('\n        },\n        "is_error": null\n    }')
        page.markup("" if more else f"\n]{RESULT_END}{END}")

    def _check_tools(self, where: str) -> None:
        if (False, True) not in self._preamble.turns:
            raise self.refuse("no tools in the model's own chat template", where)


def _quoted(message: Message, trains: bool) -> tuple[str, bool, Any]:
    text, weights = json_string(message.content, message.weights)
    return text, trains, weights


def _call_place(renderer: Cohere2, messages: Sequence[Message], i: int) -> int:
    """The number of the call that a result answers: the last one before it with its id, or, without ids, the one in
    its place.

    Raises:
        DataError: there is none.
    """
    ids = [call.get("id") for message in messages[:i] for call in message.tool_calls]
    own = messages[i].tool_call_id
    if own and own in ids:
        return len(ids) - 1 - ids[::-1].index(own)
    before = next((k for k in range(i - 1, -1, -1) if messages[k].role != "tool"), -1)
    calls = messages[before].tool_calls if before >= 0 else ()
    place = i - before - 1
    if place >= len(calls) or (own and calls[place].get("id")):
        raise renderer.refuse("no markup for a result without a call", f"messages[{i}]", "fix the row")
    return len(ids) - len(calls) + place


def _calls_of(text: str) -> tuple[Mapping[str, Any], ...] | None:
    """Calls in JSON; None if it is anything else."""
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError):
        return None
    calls: list[Mapping[str, Any]] = []
    for call in decoded if isinstance(decoded, list) else [None]:
        if not isinstance(call, dict) or set(call) != {"tool_call_id", "tool_name", "parameters"}:
            return None
        name, arguments = call["tool_name"], call["parameters"]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        calls.append({"id": str(call["tool_call_id"]), **call_of(name, arguments)})
    return tuple(calls) or None


def _variables(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"bos_token": "" if tokenizer.bos_id is None else tokenizer.decode([tokenizer.bos_id])}
