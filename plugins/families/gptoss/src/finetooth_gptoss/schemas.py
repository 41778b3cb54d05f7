"""Schemas of tools as Harmony writes them: TypeScript types with comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_rendering.turns import json_text

Schema = Mapping[str, Any]

LISTS = {"string": "string[]", "number": "number[]", "integer": "number[]", "boolean": "boolean[]"}
SIMPLE = {"number": "number", "integer": "number", "boolean": "boolean"}
LONGEST = 50
"""Characters of the type of a list's items, beyond which it is `any[]`."""
INDENT = "\n" + " " * 16
"""What the models' own template writes before the type of a property inside an object."""


class Unspeakable(ValueError):
    """What of a schema cannot be written."""


def namespace(tools: Sequence[Schema]) -> str:
    """All tools, in a namespace.

    Raises:
        Unspeakable: a tool has no name or no description, or its schema is not one of JSON.
    """
    return "## functions\n\nnamespace functions {\n\n" + "".join(map(_tool, tools)) + "} // namespace functions"


def _tool(tool: Schema) -> str:
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise Unspeakable("a tool without function")
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not isinstance(description, str):
        raise Unspeakable(f"a tool without name or description: {name!r}")
    opening = f"// {description}\ntype {name} = "
    parameters = function.get("parameters") or {}
    properties = _of(parameters, Mapping, "properties")
    if not properties:
        return f"{opening}() => any;\n\n"
    required = parameters.get("required") or ()
    written = "".join(_parameter(key, spec, required) for key, spec in properties.items())
    return f"{opening}(_: {{\n{written}}}) => any;\n\n"


def _parameter(name: str, spec: Any, required: Any) -> str:
    if not isinstance(spec, Mapping):
        raise Unspeakable(f"{name!r} without a schema")
    comment = f"// {_text(spec['description'])}\n" if spec.get("description") else ""
    optional = "" if name in required else "?"
    return f"{comment}{name}{optional}: {_type(spec)}{_default(spec)},\n"


def _default(spec: Schema) -> str:
    if "default" not in spec:
        return ""
    if spec.get("enum"):
        return ", // default: " + _text(spec["default"])
    if spec.get("oneOf"):
        return "// default: " + _text(spec["default"])
    return ", // default: " + json_text(spec["default"])


def _type(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        raise Unspeakable(f"{spec!r:.60} for a schema")
    kind = spec.get("type")
    if kind == "array":
        return _list(spec) + (" | null" if spec.get("nullable") else "")
    if isinstance(kind, list | tuple) and kind:
        return " | ".join(map(str, kind)) if len(kind) > 1 else str(kind[0])
    if spec.get("oneOf"):
        return _variants(spec["oneOf"])
    if kind == "string":
        if spec.get("enum"):
            return '"' + '" | "'.join(map(str, spec["enum"])) + '"'
        return "string" + (" | null" if spec.get("nullable") else "")
    if kind == "object":
        return _object(spec)
    return SIMPLE.get(kind, "any") if isinstance(kind, str) else "any"


def _list(spec: Schema) -> str:
    items = spec.get("items")
    if not items:
        return "any[]"
    if not isinstance(items, Mapping):
        raise Unspeakable(f"{items!r:.60} for the items of a list")
    kind = items.get("type")
    if isinstance(kind, str) and kind in LISTS:
        return LISTS[kind]
    inner = _type(items)
    return "any[]" if inner == "object | object" or len(inner) > LONGEST else f"{inner}[]"


def _object(spec: Schema) -> str:
    properties = _of(spec, Mapping, "properties")
    if not properties:
        return "object"
    required = spec.get("required") or ()
    lines = [f"{key}{'' if key in required else '?'}: {INDENT}{_type(value)}" for key, value in properties.items()]
    return "{\n" + ", ".join(lines) + "}"


def _variants(variants: Any) -> str:
    if not isinstance(variants, list | tuple) or not all(isinstance(variant, Mapping) for variant in variants):
        raise Unspeakable(f"{variants!r:.60} for oneOf")
    written = []
    for variant in variants:
        text = _type(variant)
        if variant.get("description"):
            text += "// " + _text(variant["description"])
        if "default" in variant:
            text += " " * 20 + "// default: " + json_text(variant["default"])
        written.append(text)
    return " | \n".join(written)


def _of(spec: Schema, kind: type, key: str) -> Any:
    value = spec.get(key)
    if value and not isinstance(value, kind):
        raise Unspeakable(f"{value!r:.60} for {key}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unspeakable(f"{value!r:.60} where text belongs")
    return value
