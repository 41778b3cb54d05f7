"""Calls of tools as LFM2 writes them, like a list in Python: `[clock(zone='UTC', days=2), weather()]`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from finetooth_rendering.tool_calls import FunctionCall, call_of
from finetooth_rendering.turns import json_text
from finetooth_toolbox.text.strict_json import received

ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"}
OPENING, CLOSING = "([{", ")]}"


def write_call(call: FunctionCall, *, json_lists: bool) -> str:
    """One call.

    Args:
        json_lists: a list is written in JSON, and not in Python.
    """
    values = (f"{name}={_value(value, json_lists)}" for name, value in call.arguments.items())
    return f"{call.name}({', '.join(values)})"


def read_calls(text: str) -> tuple[Mapping[str, Any], ...] | None:
    """The calls of a list; None for another text."""
    if not text.startswith("[") or not text.endswith("]"):
        return None
    calls = []
    for part in _split(text[1:-1]):
        name, opened, inside = part.strip().partition("(")
        if not opened or not inside.endswith(")") or not name or set(name) & set("'\"=,[]{} "):
            return None
        arguments: dict[str, Any] = {}
        for argument in _split(inside[:-1]):
            key, equals, value = argument.strip().partition("=")
            try:
                arguments[key] = _read(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                return None
            if not equals or not key or set(key) & set("'\"()[]{} "):
                return None
        calls.append(call_of(name, arguments))
    return tuple(calls) or None


def _value(value: Any, json_lists: bool) -> str:
    if isinstance(value, str):
        return "'" + "".join(ESCAPES.get(letter, letter) for letter in value) + "'"
    if isinstance(value, Mapping) or (json_lists and isinstance(value, list)):
        return json_text(value)
    return str(value)


def _read(text: str) -> Any:
    """A value in JSON or Python.

    Raises:
        ValueError, SyntaxError: it is neither.
    """
    try:
        return received(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (MemoryError, RecursionError) as error:  # it is nested too deep for Python's own parser
            raise ValueError("nested too deep") from error


def _split(text: str) -> Iterator[str]:
    """The parts between commas that stand in no quotes and brackets; none of an empty text."""
    depth, begin, quote, escaped = 0, 0, "", False
    for i, letter in enumerate(text):
        if quote:
            escaped, quote = letter == "\\" and not escaped, "" if letter == quote and not escaped else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "," and not depth:
            yield text[begin:i]
            begin = i + 1
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
    if text:
        yield text[begin:]
