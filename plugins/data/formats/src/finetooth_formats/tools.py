"""Reading tool schemas and tool calls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetooth_toolbox.text.strict_json import JsonProblem, decode

from finetooth_formats.columns import key as key_shown
from finetooth_formats.columns import kind, shown


class ToolProblem(ValueError):
    """The fault of a schema or a call, with its path."""


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Schemas from a list of objects, or from JSON text of one; null and empty text mean no tools.

    Raises:
        ToolProblem: the value is neither, or JSON cannot represent it.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = _json("tools", value)
    if not isinstance(value, list | tuple):
        raise ToolProblem(f"tools is {kind(value)}, not a list of schemas")
    for i, schema in enumerate(value):
        if not isinstance(schema, Mapping):
            raise ToolProblem(f"tools[{i}] is {kind(schema)}, not an object")
        _check_json(f"tools[{i}]", schema)
    return tuple(value)


def read_calls(path: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    """Calls from a list of them, or from JSON text of one call or of a list; empty text means no call.

    Raises:
        ToolProblem: names what is missing or of the wrong type.
    """
    if isinstance(value, str):
        value = _json(path, value) if value.strip() else []
        value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list | tuple):
        raise ToolProblem(f"{path} is {kind(value)}, not a list of calls")
    return tuple(read_call(f"{path}[{i}]", call) for i, call in enumerate(value))


def read_call(path: str, value: Any) -> Mapping[str, Any]:
    """One call in the OpenAI shape, its arguments as an object.

    Args:
        value: the call, with or without the level `function`, or JSON text of it; arguments may be JSON text.

    Raises:
        ToolProblem: names what is missing, of the wrong type, or cannot be said in JSON, as all renderers write it.
    """
    if isinstance(value, str):
        value = _json(path, value)
    if not isinstance(value, Mapping):
        raise ToolProblem(f"{path} is {kind(value)}, not an object")
    function = value.get("function", value)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ToolProblem(f"{path} names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(f"{path}.arguments", arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ToolProblem(f"{path}.arguments is {kind(arguments)}, not an object")
    _check_json(f"{path}.arguments", arguments)
    call = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return {"id": value["id"], **call} if isinstance(value.get("id"), str) else call


def _json(path: str, text: str) -> Any:
    try:
        return decode(text)
    except JsonProblem as problem:
        raise ToolProblem(f"{path} is a string but not JSON that can be used: {problem}") from problem


def _check_json(path: str, value: Any) -> None:
    """
    Raises:
        ToolProblem: names a value or key that JSON does not have: bytes and dates of tables, NaN.
    """
    rest = [(path, value)]
    while rest:
        path, value = rest.pop()
        if isinstance(value, Mapping):
            if (other := next((name for name in value if not isinstance(name, str)), None)) is not None:
                raise ToolProblem(f"{path} has the key {shown(other)}, which is {kind(other)}, not text")
            rest += [(f"{path}.{key_shown(name)}", inner) for name, inner in value.items()]
        elif isinstance(value, list | tuple):
            rest += [(f"{path}[{i}]", inner) for i, inner in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ToolProblem(f"{path} is {value}, which JSON cannot express")
        elif value is not None and not isinstance(value, str | int | float):
            raise ToolProblem(f"{path} is {kind(value)}, which JSON cannot express")
