"""Tools as Kimi K2.5 sees them: types of TypeScript, with comments.

# Tools

## functions
namespace functions {
// The time.
type clock = (_: {
  // Where.
  zone?: string
}) => any;
}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

INDENT = "  "
SPELLED: Mapping[str, str] = {"integer": "number"}
"""What TypeScript calls a type of JSON Schema otherwise."""
IN_UNIONS: Mapping[str, str] = {**SPELLED, "object": "{}", "array": "Array<any>"}
LIMITS: Mapping[str, Sequence[str]] = {
    "string": ("maxLength", "minLength", "pattern"), "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"), "array": ("maxItems", "minItems"),
}  # fmt: skip
"""What a comment says of values, by their type."""


def declared(tools: Sequence[Mapping[str, Any]]) -> str:
    """All tools.

    Raises:
        ValueError: a schema that has no type, or refers to another one.
    """
    functions = "\n".join(_function(tool.get("function", tool)) for tool in tools)
    return f"# Tools\n\n## functions\nnamespace functions {{\n{functions}\n}}\n"


def _function(function: Mapping[str, Any]) -> str:
    described = _comment(str(function.get("description") or ""), "")
    parameters = {"type": "object", **(function.get("parameters") or {})}
    return f"{described}type {function['name']} = (_: {_object(parameters, '')}) => any;"


def _comment(text: str, indent: str) -> str:
    lines = (f"{indent}// {line}\n" if line else "\n" for line in text.split("\n"))
    return "".join(lines) if text else ""


def _comments(schema: Any, indent: str) -> str:
    """What is said of a value, apart from its type."""
    if not isinstance(schema, Mapping):
        return ""
    kind = schema.get("type") if not {"anyOf", "enum"} & schema.keys() else None
    keys = LIMITS.get(kind, ()) if isinstance(kind, str) else ()
    limits = ", ".join(f"{key}: {schema[key]}" for key in keys if key in schema)
    return _comment(str(schema.get("description") or ""), indent) + f"{indent}// {limits}\n" * bool(limits)


def _type(schema: Any, indent: str) -> str:
    """
    Raises:
        ValueError: it has none, or refers to another schema.
    """
    if isinstance(schema, bool) or schema == {}:
        return "null" if schema is False else "any"
    if "anyOf" in schema:
        return " | ".join(_type(part, indent) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in schema["enum"])
    kind = schema.get("type")
    if "$ref" in schema or kind is None:
        raise ValueError(json.dumps(schema, ensure_ascii=False))
    if not isinstance(kind, str):
        return " | ".join(IN_UNIONS.get(name, name) for name in kind)
    if kind == "array":
        return _array(schema.get("items") or {}, indent)
    return _object(schema, indent) if kind == "object" else SPELLED.get(kind, kind)


def _array(items: Any, indent: str) -> str:
    inner = indent + INDENT
    if comments := _comments(items, inner):
        return f"Array<\n{comments}{inner}{_type(items, inner)}\n{indent}>"
    return f"Array<{_type(items, indent)}>"


def _object(schema: Mapping[str, Any], indent: str) -> str:
    inner, required = indent + INDENT, schema.get("required") or ()
    fields = sorted((schema.get("properties") or {}).items(), key=lambda field: (field[0] not in required, field[0]))
    lines = []
    for name, value in fields:
        default = value.get("default") if isinstance(value, Mapping) else None
        said = repr(default) if isinstance(default, bool | int | float) else json.dumps(default, ensure_ascii=False)
        comments = _comments(value, inner) + _comment(f"Default: {said}" if default is not None else "", inner)
        lines.append(f"{comments}{inner}{name}{'' if name in required else '?'}: {_type(value, inner)}")
    others = schema.get("additionalProperties")
    if others is not None:
        lines.append(f"{inner}[k: string]: {'never' if others is False else _type(others, inner)}")
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" if lines else "{}"
