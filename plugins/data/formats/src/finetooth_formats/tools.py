"""Reading tool schemas and tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks.strict_json import JsonProblem, decode

from finetooth_formats.columns import kind


class ToolProblem(ValueError):
    """What is wrong with a schema or a call, with its path."""


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Schemas from a list of objects, or from JSON text of one; null and empty text are no tools.

    Raises:
        ToolProblem: it is neither.
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
    return tuple(value)


def read_calls(path: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    """Calls from a list of them, or from JSON text of one call or of a list; empty text is no call.

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
        ToolProblem: names what is missing or of the wrong type.
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
    call = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return {"id": value["id"], **call} if isinstance(value.get("id"), str) else call


def _json(path: str, text: str) -> Any:
    try:
        return decode(text)
    except JsonProblem as problem:
        raise ToolProblem(f"{path} is a string but not JSON that can be used: {problem}") from problem
