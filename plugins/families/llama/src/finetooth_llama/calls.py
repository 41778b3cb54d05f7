"""Calls and results of tools as Llama 3.1 and later write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetooth_hooks import DataError
from finetooth_rendering.tool_calls import call_of, json_call

PYTHON = "<|python_tag|>"

_BUILTIN = re.compile(r"(\w+)\.call\((.*)\)", re.DOTALL)
_ARGUMENT = re.compile(r'(\w+)="(.*?)"(?:, (?=\w+=")|\Z)', re.DOTALL)


def builtin_call(name: str, arguments: Mapping[str, Any], where: str) -> str:
    """A call of a built-in tool, `brave_search.call(query="...")`.

    Raises:
        DataError: an argument is not text.
    """
    for key, value in arguments.items():
        if not isinstance(value, str):
            raise DataError(
                where,
                f"argument {key} of {name} is {value!r:.60}, and calls of built-in tools take text only",
                action="make it text, or take the name out of builtin_tools",
            )
    pairs = ", ".join(f'{key}="{value}"' for key, value in arguments.items())
    return f"{name}.call({pairs})"


def read_call(text: str) -> Mapping[str, Any] | None:
    """The call that a completion is; None if it is none."""
    body = text.strip().removeprefix(PYTHON)
    match = _BUILTIN.fullmatch(body) if body != text.strip() else None
    if match is None:
        return json_call(body, arguments="parameters")
    arguments, at = {}, 0
    while at < len(match[2]):
        argument = _ARGUMENT.match(match[2], at)
        if argument is None:
            return None
        arguments[argument[1]] = argument[2]
        at = argument.end()
    return call_of(match[1], arguments)
