"""The renderer `hermes`: ChatML of Hermes 2 Pro, whose system message describes tools as functions of Python.

    <|begin_of_text|><|im_start|>system
    You are a function calling AI model. ... <tools> {"type": "function", ...} </tools>...<|im_end|>
    <|im_start|>user
    The time?<|im_end|>
    <|im_start|>assistant
    <tool_call>
    {"name": "clock", "arguments": {}}
    </tool_call><|im_end|>
    <|im_start|>tool
    <tool_response>
    12:00
    </tool_response>
    <|im_end|><|im_start|>assistant
    Noon.<|im_end|>

A trained assistant message trains its content or its calls, and its `<|im_end|>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from finetooth_hooks import Conversation, DataError, Message, Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.own_templates import own_template
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import function_call, tagged_calls
from finetooth_rendering.turns import TurnRenderer, json_text
from finetooth_toolbox.messages.chat_templates import chat_opening

from finetooth_chatml.renderer import DOCUMENT_END, END, START

CALL, CALL_END, RESULT, RESULT_END = "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"
ROLES = ("system", "user", "assistant", "tool")
TYPES = {"string": "str", "number": "float", "integer": "int", "boolean": "bool", "null": "None"}

BEFORE = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags. "
    "You may call one or more functions to assist with the user query. Don't make assumptions about what values to "
    "plug into functions. Here are the available tools: <tools> "
)
AFTER = (
    " </tools>Use the following pydantic model json schema for each tool call you will make: "
    '{"properties": {"name": {"title": "Name", "type": "string"}, "arguments": {"title": "Arguments", "type": '
    '"object"}}, "required": ["name", "arguments"], "title": "FunctionCall", "type": "object"}}\n'
    "For each function call return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags as follows:\n<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>'
)


class HermesOptions(Options):
    """No options."""


def build(options: HermesOptions, context: Context) -> Hermes:
    """Builds the renderer of Hermes' markup.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """
    return Hermes(context.tokenizer)


class Hermes(TurnRenderer):
    """Hermes 2 Pro and 3, with tools; a conversation without tools is plain ChatML.

    Normalisation: calls lose their ids.

    A prompt that ends with results closes their frame otherwise (`</tool_response><|im_end|>`) than the conversation
    that continues (a line feed between the two), as the official template does; so a prompt is not always the beginning
    of the conversation that follows, and `extension` is false.

    Raises:
        RecipeError: the tokenizer has no ChatML tokens.
    """

    name = "hermes"
    controls = (START, END)
    optional: ClassVar[tuple[str, ...]] = (DOCUMENT_END, CALL, CALL_END, RESULT, RESULT_END)
    stops = (END, DOCUMENT_END)
    extension = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._begin = chat_opening(tokenizer)
        if self._begin:
            self.optional = (*type(self).optional, self._begin)  # type: ignore[misc]
        super().__init__(tokenizer)
        self.template = own_template(
            Path(__file__).parent / "hermes.jinja",
            {"begin": self._begin, "start": START, "end": END, "before": BEFORE, "after": AFTER, "types": TYPES,
             "call_start": CALL, "call_end": CALL_END, "result_start": RESULT, "result_end": RESULT_END}
        )  # fmt: skip

    def write(self, page: Page, conversation: Conversation, trained: Sequence[bool], *, ask: bool) -> None:
        """`Rendered.spans` has one range for each message; the system message with the tools stands before them.

        Raises:
            DataError: a shape the markup has no place for: reasoning, text next to calls, results of nothing, a tool
                without description or with a type that has no name.
        """
        messages = conversation.messages
        self._check(conversation)
        page.markup(self._begin)
        if conversation.tools:
            page.markup(f"{START}system\n{BEFORE}")
            signatures = (self._signature(tool, f"tools[{i}]") for i, tool in enumerate(conversation.tools))
            page.say("\n".join(signatures))
            page.markup(f"{AFTER}{END}\n")
        for i, (message, trains) in enumerate(zip(messages, trained, strict=True)):
            page.message()
            if message.role == "tool":
                ahead = messages[i + 1].role if i + 1 < len(messages) else ""
                self._result(page, message, trains, first=messages[i - 1].role != "tool", ahead=ahead)
                continue
            page.markup(f"{START}{message.role}\n")
            page.say(message.content, trains, message.weights)
            for k, call in enumerate(message.tool_calls):
                name, arguments = function_call(call, f"messages[{i}]")
                page.markup("\n" * bool(k) + f'{CALL}\n{{"name": "', trains)
                page.say(name, trains)
                page.markup('", "arguments": ', trains)
                page.say(json_text(arguments), trains)
                page.markup(f"}}\n{CALL_END}", trains)
            page.markup(END, trains)
            page.markup("\n")
        if ask:
            page.markup(f"{START}assistant\n")

    def read(self, text: str) -> Message:
        content, calls = tagged_calls(text, CALL, CALL_END)
        return Message("assistant", content, tool_calls=calls)

    def _result(self, page: Page, message: Message, trains: bool, *, first: bool, ahead: str) -> None:
        """
        Args:
            ahead: role of the next message, empty if there is none.
        """
        page.markup(f"{START}tool\n{RESULT}\n" if first else f"{RESULT}\n")
        page.say(message.content, trains, message.weights)
        page.markup(f"\n{RESULT_END}\n" if ahead else f"\n{RESULT_END}")
        if ahead != "tool":
            page.markup(END, trains)

    def _signature(self, tool: Mapping[str, Any], where: str) -> str:
        """A tool as the template describes it.

        Raises:
            DataError: it lacks a description or parameters, or has a type without a name.
        """
        function = tool.get("function", tool)
        name, description, parameters = (function.get(key) for key in ("name", "description", "parameters"))
        if not isinstance(name, str) or not isinstance(description, str) or not isinstance(parameters, Mapping):
            raise self.refuse("no markup for a tool without name, description and parameters", where, "add them")
        fields = parameters.get("properties") or {}
        if not isinstance(fields, Mapping) or not all(isinstance(value, Mapping) for value in fields.values()):
            raise self.refuse("no markup for properties that are not schemas", where, "fix the tool")
        typed = {key: self._type(value, where) for key, value in fields.items()}
        signature = f"{name}({', '.join(f'{key}: {type_}' for key, type_ in typed.items())})"
        returned = function.get("return")
        result = returned if isinstance(returned, Mapping) else None  # a schema may be `true`, which says nothing
        if result is not None:
            signature += f" -> {self._type(result, where)}"
        text = f"{signature} - {description}\n\n" + ("    Args:\n" if fields else "")
        for key, value in fields.items():
            text += f"        {key}({typed[key]}): {str(value.get('description', '')).strip()}"
        if result is not None and "description" in result:
            text += f"\n    Returns:\n        {result['description']}"
        schema = json_text(parameters) if fields else "{}"
        return (
            f'{{"type": "function", "function": {{"name": "{name}", "description": "{text}", "parameters": {schema}}}'
        )

    def _type(self, schema: Mapping[str, Any], where: str) -> str:
        """A type of JSON Schema as the template names it in Python.

        Raises:
            DataError: the template has no name for it.
        """
        kind = schema.get("type", ())
        if kind is None:
            return "Any"
        if isinstance(kind, str):
            if kind in TYPES:
                return TYPES[kind]
            if kind == "array":
                return "list[Union[]]"  # the official template never names what is in a list
            if kind == "object" and "additionalProperties" in schema:
                inner = schema["additionalProperties"]
                return f"dict[str, {self._type(inner if isinstance(inner, Mapping) else {}, where)}]"
            if kind == "object":
                return "dict"
        elif isinstance(kind, Sequence):
            return f"Union[{','.join(self._type({'type': member}, where) for member in kind)}]"
        raise self.refuse(f"no name for the type {schema!r:.80}", where)

    def _check(self, conversation: Conversation) -> None:
        self.check_texts(conversation, ROLES, calls=True)
        for i, message in enumerate(conversation.messages):
            where = f"messages[{i}]"
            if message.role == "tool" and not i:
                raise DataError(where, "it is the result of nothing", action="remove the row")
            if message.tool_calls and message.content:
                raise self.refuse("no markup for text next to tool calls", where)
