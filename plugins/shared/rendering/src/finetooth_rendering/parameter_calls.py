"""Calls of tools with a tag for each argument, as Qwen3-Coder, Qwen3.5 and Nemotron 3 write them.

<tool_call>
<function=clock>
<parameter=zone>
UTC
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import FunctionCall, call_of
from finetooth_rendering.turns import json_text

CALL, CALL_END = "<tool_call>", "</tool_call>"
INSTRUCTIONS = (
    "\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
    "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "<tool_call></tool_call> XML tags\n"
    "- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT "
    "after\n"
    "- If there is no function call available, answer the question like normal with your current knowledge and do not "
    "tell the user about function calls\n</IMPORTANT>"
)
"""The instructions on calls that such models get, behind the list of their tools."""

Value = Callable[[Any], str]
"""How the value of an argument is written."""

_ARGUMENT = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.DOTALL)
_CALL = re.compile(
    rf"{CALL}\n<function=([^>\n]+)>\n((?:{_ARGUMENT.pattern})*?)</function>\n{CALL_END}", re.DOTALL
)  # fmt: skip
_WORDS: Mapping[str, bool | None] = {"True": True, "False": False, "None": None}


def json_value(value: Any) -> str:
    """A text as it is, another value as JSON."""
    return value if isinstance(value, str) else json_text(value)


def plain_value(value: Any) -> str:
    """A list or an object as JSON, anything else as Python prints it: `True`, `None`."""
    return json_text(value) if isinstance(value, Mapping | list | tuple) else str(value)


def write_call(page: Page, call: FunctionCall, value: Value, trains: bool) -> None:
    """Write a call from its first tag to its last."""
    page.markup(f"{CALL}\n<function=", trains)
    page.say(call.name, trains)
    page.markup(">\n", trains)
    for key, argument in call.arguments.items():
        page.markup("<parameter=", trains)
        page.say(str(key), trains)
        page.markup(">\n", trains)
        page.say(value(argument), trains)
        page.markup("\n</parameter>\n", trains)
    page.markup(f"</function>\n{CALL_END}", trains)


def described(tool: Mapping[str, Any], *, reordered: bool) -> str:
    """A tool as such models see it: a tag for each thing that its schema says.

    Args:
        reordered: as Nemotron 3 has it: `enum` stands before what else is said of an argument, and `required` last.
    """
    function = tool.get("function", tool)
    text = f"\n<function>\n<name>{function['name']}</name>"
    if "description" in function:
        text += _tag("description", str(function["description"]).strip())
    text += "\n<parameters>"
    parameters = function.get("parameters")
    known: Mapping[str, Any] = parameters if isinstance(parameters, Mapping) else {}
    properties = known.get("properties")
    for name, fields in (properties if isinstance(properties, Mapping) else {}).items():
        text += f"\n<parameter>\n<name>{name}</name>"
        schema: Mapping[str, Any] = fields if isinstance(fields, Mapping) else {}
        if "type" in schema:
            text += _tag("type", str(schema["type"]))
        if "description" in schema:
            text += _tag("description", str(schema["description"]).strip())
        if reordered and "enum" in schema:
            text += _tag("enum", json_text(schema["enum"]))
        handled = ("name", "type", "description", *["enum"] * reordered)
        text += _others(schema, handled) + "\n</parameter>"
    text += _others(known, ("type", "properties", *["required"] * reordered))
    if reordered and "required" in known:
        text += _tag("required", json_text(known["required"]))
    text += "\n</parameters>" + _others(function, ("type", "name", "description", "parameters"))
    return text + "\n</function>"


def reads_back(call: FunctionCall, value: Value) -> bool:
    """Name, keys and texts of a call are read as they are: none of them spells the markup and ends it early."""
    pairs = [(str(key), value(argument)) for key, argument in call.arguments.items()]
    text = "".join(f"<parameter={key}>\n{argument}\n</parameter>\n" for key, argument in pairs)
    match = _CALL.fullmatch(f"{CALL}\n<function={call.name}>\n{text}</function>\n{CALL_END}")
    tagged = any(CALL in part for part in (call.name, *(part for pair in pairs for part in pair)))
    return not tagged and match is not None and match[1] == call.name and _ARGUMENT.findall(match[2]) == pairs


def split_calls(text: str, *, words: bool = False) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """What stands before the calls with which a text ends, and those calls.

    The value of an argument that reads as JSON of another kind than text is that value.

    Args:
        words: `True`, `False` and `None` are values, too (`plain_value`).
    """
    rest, calls = text.rstrip(), list[Mapping[str, Any]]()
    while rest.endswith(CALL_END):
        begin = rest.rfind(CALL)
        match = _CALL.fullmatch(rest, begin) if begin >= 0 else None
        if match is None:
            break
        arguments = {key: argument_value(argument, words) for key, argument in _ARGUMENT.findall(match[2])}
        calls.insert(0, call_of(match[1], arguments))
        rest = rest[:begin].rstrip()
    return (rest if calls else text), tuple(calls)


def _tag(name: str, text: str) -> str:
    return f"\n<{name}>{text}</{name}>"


def _others(fields: Mapping[str, Any], handled: Sequence[str]) -> str:
    return "".join(_tag(key, plain_value(value)) for key, value in fields.items() if key not in handled)


def argument_value(text: str, words: bool = False) -> Any:
    """An argument as a model wrote it: JSON that is not a string, else the text.

    Args:
        words: `True`, `False` and `None` are Python's.
    """
    if words and text in _WORDS:
        return _WORDS[text]
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) else value


def _refuse(spelling: str) -> float:
    raise ValueError(spelling)
