"""Tool calls as Mistral's templates write them, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_rendering.turns import json_text
from finetooth_toolbox.text.strict_json import received

ID_LENGTH = 9
"""Characters of the id of a call."""

Calls = tuple[Mapping[str, Any], ...]


def offered(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tools as v3 lists them: strings between quotes as they are, without the escapes of JSON."""
    return f"[{', '.join(_offered(tool.get('function', tool)) for tool in tools)}]"


def _offered(function: Mapping[str, Any]) -> str:
    shown = (
        f'"{key}": "{value}"' if isinstance(value, str) else f'"{key}": {json_text(value)}'
        for key, value in function.items()
        if key != "return"
    )
    return f'{{"type": "function", "function": {{{", ".join(shown)}}}}}'


def listed(calls: Calls) -> str:
    """A JSON list of calls, each with its id at the end."""
    return f"[{', '.join(_listed(call) for call in calls)}]"


def _listed(call: Mapping[str, Any]) -> str:
    return f'{json_text(call["function"])[:-1]}, "id": "{call["id"]}"}}'


def read_listed(text: str) -> Calls | None:
    """The calls that a list says, in the OpenAI shape; None if it is broken."""
    values = _json(text)
    if not isinstance(values, list) or not values:
        return None
    calls = [_call(value.get("id"), value.get("name"), value.get("arguments")) for value in values if _is_object(value)]
    return _all(calls) if len(calls) == len(values) else None


def read_apart(parts: Sequence[tuple[str, str, str]]) -> Calls | None:
    """The calls that names, ids and arguments in JSON say; None if one is broken."""
    return _all([_call(id_, name, _json(arguments)) for name, id_, arguments in parts])


def read_unnumbered(parts: Sequence[tuple[str, str]]) -> Calls | None:
    """The calls that names and arguments in JSON say; None if one is broken."""
    return _all([_call(None, name, _json(arguments)) for name, arguments in parts])


def _json(text: str) -> Any:
    try:
        return received(text)
    except ValueError:
        return None


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _call(id_: Any, name: Any, arguments: Any) -> Mapping[str, Any] | None:
    if not isinstance(name, str) or not _is_object(arguments):
        return None
    numbered = {"id": id_} if isinstance(id_, str) else {}
    return {**numbered, "type": "function", "function": {"name": name, "arguments": arguments}}


def _all(calls: Sequence[Mapping[str, Any] | None]) -> Calls | None:
    valid = tuple(call for call in calls if call is not None)
    return valid if len(valid) == len(calls) else None
