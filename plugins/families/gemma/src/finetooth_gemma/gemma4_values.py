"""Values, calls and tools as Gemma 4 writes them: JSON with bare keys, and strings between tokens `<|"|>`.

Pieces are pairs of a text and whether it comes from the data, in which nothing is a control token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetooth_rendering.bare_values import QUOTE

NOT_PROPERTIES = ("description", "type", "properties", "required", "nullable")
"""Keys of an object's schema that are not taken for its properties where it has no `properties`."""

Pieces = Iterator[tuple[str, bool]]


def in_order(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Items by key, whatever its case: as the template sorts them."""
    return sorted(values.items(), key=lambda item: str(item[0]).lower())


def quoted(text: Any) -> Pieces:
    yield QUOTE, False
    yield str(text), True
    yield QUOTE, False


def write_value(value: Any, *, bare: bool = True) -> Pieces:
    """A value.

    Args:
        bare: keys of objects stand without quotes.
    """
    if value is None:
        yield "null", False
    elif isinstance(value, str):
        yield from quoted(value)
    elif isinstance(value, bool):
        yield "true" if value else "false", False
    elif isinstance(value, Mapping):
        yield "{", False
        for i, (key, inner) in enumerate(in_order(value)):
            yield "," * bool(i), False
            yield from [(str(key), True)] if bare else quoted(key)
            yield ":", False
            yield from write_value(inner, bare=bare)
        yield "}", False
    elif isinstance(value, list | tuple):
        yield from _listed(write_value(element, bare=bare) for element in value)
    else:
        yield str(value), True


def arguments(values: Mapping[str, Any]) -> Pieces:
    """What a function is called with, between its braces."""
    for i, (key, value) in enumerate(in_order(values)):
        yield "," * bool(i), False
        yield str(key), True
        yield ":", False
        yield from write_value(value)


def declaration(tool: Mapping[str, Any]) -> Pieces:
    """A tool of the OpenAI shape."""
    function: Mapping[str, Any] = tool.get("function", tool)
    yield "declaration:", False
    yield str(function.get("name", "")), True
    yield "{description:", False
    yield from quoted(function.get("description", ""))
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping) and parameters:
        yield ",parameters:{", False
        if parameters.get("properties"):
            yield "properties:{", False
            yield from _properties(parameters["properties"])
            yield "},", False
        if parameters.get("required"):
            yield "required:", False
            yield from _listed(quoted(name) for name in parameters["required"])
            yield ",", False
        if parameters.get("type"):
            yield "type:", False
            yield from quoted(str(parameters["type"]).upper())
            yield "}", False
    if "response" in function:
        yield from _response(function["response"])
    yield "}", False


def _response(response: Mapping[str, Any]) -> Pieces:
    yield ",response:{", False
    if response.get("description"):
        yield "description:", False
        yield from quoted(response["description"])
        yield ",", False
    if str(response.get("type", "")).upper() == "OBJECT":
        yield "type:", False
        yield from quoted("OBJECT")
        yield "}", False


def _properties(properties: Mapping[str, Any], without: Sequence[str] = ()) -> Pieces:
    """Parameters by name.

    Args:
        without: keys that are none.
    """
    for i, (name, value) in enumerate(item for item in in_order(properties) if item[0] not in without):
        yield "," * bool(i), False
        yield str(name), True
        yield ":{", False
        for part in _schema(value if isinstance(value, Mapping) else {}):
            yield from part
        yield "}", False


def _schema(value: Mapping[str, Any]) -> Iterator[Pieces]:
    """Parts of a parameter, the type last; a comma stands before every one but the first."""
    kind = str(value.get("type", "")).upper()
    parts: list[tuple[str, Pieces]] = []
    if value.get("description"):
        parts.append(("description:", quoted(value["description"])))
    if kind == "STRING" and value.get("enum"):
        parts.append(("enum:", write_value(value["enum"], bare=False)))
    if kind == "ARRAY" and isinstance(value.get("items"), Mapping) and value["items"]:
        parts.append(("items:", _items(value["items"])))
    if value.get("nullable"):
        parts.append(("nullable:", iter([("true", False)])))
    if kind == "OBJECT":
        own = value.get("properties")
        inner = _properties(own) if isinstance(own, Mapping) else _properties(value, NOT_PROPERTIES)
        parts.append(("properties:", _braced(inner)))
        if value.get("required"):
            parts.append(("required:", _listed(quoted(name) for name in value["required"])))
    parts.append(("type:", quoted(kind)))
    for i, (name, pieces) in enumerate(parts):
        yield iter([("," * bool(i) + name, False)])
        yield pieces


def _items(schema: Mapping[str, Any]) -> Pieces:
    """The schema of a list's items."""
    yield "{", False
    first = True
    for key, value in in_order(schema):
        if value is None:
            continue
        yield "" if first else ",", False
        first = False
        yield str(key), True
        yield ":", False
        if key == "properties":
            yield from _braced(_properties(value) if isinstance(value, Mapping) else iter(()))
        elif key == "required":
            yield from _listed(quoted(name) for name in value)
        elif key == "type":
            upper = value.upper() if isinstance(value, str) else [str(kind).upper() for kind in value]
            yield from write_value(upper, bare=False)
        else:
            yield from write_value(value, bare=False)
    yield "}", False


def _braced(pieces: Pieces) -> Pieces:
    yield "{", False
    yield from pieces
    yield "}", False


def _listed(several: Iterator[Pieces]) -> Pieces:
    yield "[", False
    for i, pieces in enumerate(several):
        yield "," * bool(i), False
        yield from pieces
    yield "]", False
