"""Calls of tools as data and as text, for the renderers of several families."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from finetooth_hooks.errors import DataError
from finetooth_toolbox.text.strict_json import received


class FunctionCall(NamedTuple):
    """What a call asks for."""

    name: str
    arguments: Mapping[str, Any]


def function_call(call: Mapping[str, Any], where: str) -> FunctionCall:
    """Name and arguments of a call in the OpenAI shape.

    Args:
        where: the message, `messages[3]`.

    Raises:
        DataError: it is not of that shape.
    """
    function = call.get("function")
    if isinstance(function, Mapping):
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and isinstance(arguments, Mapping):
            return FunctionCall(name, arguments)
    raise DataError(
        where,
        f"a tool call is not of the form {{function: {{name: TEXT, arguments: OBJECT}}}}: {dict(call)!r:.120}",
        action="fix the row",
    )


def call_of(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call in the OpenAI shape; without an id, for markup that writes none."""
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def tagged_calls(text: str, begin: str, end: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Text without the calls in it that stand between two tags, and those calls.

    A call is JSON, `{"name": ..., "arguments": {...}}`; the line feed before its first tag belongs to it. What stands
    between tags and has another form stays in the text.
    """
    rest, calls, at = "", [], 0
    while (opening := text.find(begin, at)) >= 0:
        inside = opening + len(begin)
        call, stop = _call_at(text, inside, end)
        if call is None:
            rest, at = rest + text[at:inside], inside
        else:
            calls.append(call)
            rest, at = rest + text[at:opening].removesuffix("\n"), stop
    return rest + text[at:], tuple(calls)


def json_call(text: str, *, arguments: str = "arguments") -> Mapping[str, Any] | None:
    """The call that a text is, `{"name": ..., "arguments": {...}}` and nothing else; None for another text.

    Args:
        arguments: the markup's name for them.
    """
    try:
        value = received(text)
    except ValueError:
        return None
    return _call(value, arguments)


def _call_at(text: str, begin: int, end: str) -> tuple[Mapping[str, Any] | None, int]:
    """The call at a character, up to its end tag, and the index of its end."""
    at = begin + len(text[begin:]) - len(text[begin:].lstrip())
    try:
        value, at = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return None, begin
    after = text[at:].lstrip()
    call = _call(value, "arguments")
    if call is None or not after.startswith(end):
        return None, begin
    return call, len(text) - len(after) + len(end)


def _call(value: Any, key: str) -> Mapping[str, Any] | None:
    if not isinstance(value, dict) or set(value) != {"name", key}:
        return None
    name, arguments = value["name"], value[key]
    return call_of(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None
