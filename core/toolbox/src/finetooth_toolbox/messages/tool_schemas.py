"""Checks schemas of tools once, before any renderer, since renderers treated the same fault differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetooth_hooks.errors import DataError

ACTION = 'write {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
VARIANTS = ("anyOf", "oneOf", "allOf")


def is_bare(schema: Mapping[str, Any]) -> bool:
    """Whether a schema lacks the level `function`, like ShareGPT's and Glaive's."""
    return "function" not in schema and isinstance(schema.get("name"), str)


def wrapped(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bare schema in the OpenAI shape."""
    return {"type": "function", "function": {key: value for key, value in schema.items() if key != "type"}}


def check_tools(tools: Sequence[Any]) -> None:
    """Checks the schemas of tools.

    Raises:
        DataError: a schema does not have the OpenAI shape, or its parameters are not a JSON Schema; names
            the path, `tools[0].function.parameters.properties.city`.
    """
    problem = next((problem for i, tool in enumerate(tools) for problem in _tool(f"tools[{i}]", tool)), None)
    if problem is not None:
        raise DataError("", problem, action=ACTION)


def _tool(path: str, tool: Any) -> Iterator[str]:
    if not isinstance(tool, Mapping):
        yield f"{path} is {_kind(tool)}, not an object"
        return
    function, path = (tool["function"], f"{path}.function") if "function" in tool else (tool, path)
    if not isinstance(function, Mapping):
        yield f"{path} is {_kind(function)}, not an object with name and parameters"
        return
    name = function.get("name")
    if not isinstance(name, str) or not name:
        yield f"{path}.name is {'missing' if name is None else 'empty' if name == '' else f'{_kind(name)}, not text'}"
    if not isinstance(function.get("description"), str | None):
        yield f"{path}.description is {_kind(function['description'])}, not text"
    for key in ("parameters", "return"):
        if function.get(key) is not None:
            yield from _schema(f"{path}.{key}", function[key])


def _schema(path: str, schema: Any) -> Iterator[str]:
    """The faults of a schema and its nested schemas."""
    if isinstance(schema, bool):  # `true` allows anything
        return
    if not isinstance(schema, Mapping):
        yield f"{path} is {_kind(schema)}, not a schema"
        return
    type_ = schema.get("type")
    named = isinstance(type_, str | None) or (
        isinstance(type_, list | tuple) and bool(type_) and all(isinstance(name, str) for name in type_)
    )
    if not named:
        yield f"{path}.type is {_kind(type_)}, not a type's name or a list of such"
    properties = schema.get("properties")
    if properties is not None:
        if not isinstance(properties, Mapping):
            yield f"{path}.properties is {_kind(properties)}, not an object"
        else:
            for key, inner in properties.items():
                yield from _schema(f"{path}.properties.{key}", inner)
        required = schema.get("required")
        if not isinstance(required, list | tuple | None):
            yield f"{path}.required is {_kind(required)}, not a list of names"
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from _schema(f"{path}.{key}", schema[key])
    for key in VARIANTS:
        variants = schema.get(key)
        if isinstance(variants, list | tuple):
            for i, inner in enumerate(variants):
                yield from _schema(f"{path}.{key}[{i}]", inner)
        elif variants is not None:
            yield f"{path}.{key} is {_kind(variants)}, not a list of schemas"
    if not isinstance(schema.get("enum"), list | tuple | None):
        yield f"{path}.enum is {_kind(schema['enum'])}, not a list"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "text"), (int | float, "a number"), (Mapping, "an object"), (list | tuple, "a list"))
    return next((name for type_, name in names if isinstance(value, type_)), "null" if value is None else "no JSON")
