"""Tables of options, from the JSON Schema of an options model: what YAML may hold, defaults, bounds, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetooth_core.plugins.builders import options_model
from finetooth_hooks import Entry, Options, PluginError

Schema = Mapping[str, Any]
_BOUNDS = (
    ("minimum", "≥"),
    ("exclusiveMinimum", ">"),
    ("maximum", "≤"),
    ("exclusiveMaximum", "<"),
)
_NAMES = {"string": "text", "boolean": "true or false", "null": "null", "object": "mapping"}


def options_table(entry: Entry) -> list[str]:
    """Lines of the table of one entry's options."""
    return model_table(_model(entry), "It has no options.")


def option_rows(entry: Entry) -> list[tuple[str, ...]]:
    """Option, value, default and meaning of everything that one entry takes."""
    schema = _model(entry).model_json_schema()
    return list(schema_rows(schema, schema))


def _model(entry: Entry) -> type[Options]:
    try:
        return options_model(entry)
    except PluginError as error:
        raise SystemExit(f"{entry.kind} {entry.name}: {error}") from error


def model_table(model: type[Options], empty: str = "") -> list[str]:
    """Lines of the table of one options model."""
    schema = model.model_json_schema()
    rows = list(schema_rows(schema, schema))
    if not rows:
        return [empty]
    return table(("option", "value", "default", "meaning"), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is code."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for first, *rest in rows:
        lines.append(f"| {' | '.join([f'`{first}`', *(cell(text) for text in rest)])} |")
    return lines


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|") or "-"


def schema_rows(schema: Schema, root: Schema, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Option, value, default and meaning of every property; those of a nested model follow with their path.

    Args:
        schema: with `properties`.
        root: holds the definitions.
    """
    for name, node in schema.get("properties", {}).items():
        required = name in schema.get("required", ())
        nested = _nested(node, root)
        default = "required" if required else "-"
        if "default" in node and nested is None:
            default = f"`{_yaml(node['default'])}`"
        yield f"{prefix}{name}", value_text(node, root), default, node.get("description", "")
        if nested is not None:
            yield from schema_rows(nested, root, f"{prefix}{name}.")


def _nested(node: Schema, root: Schema) -> Schema | None:
    """The model a setting holds, if it holds nothing else, or null."""
    choices = [choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"]
    target = resolved(choices[0] if len(choices) == 1 else node, root)
    return target if "properties" in target else None


def resolved(node: Schema, root: Schema) -> Schema:
    """Follow `$ref`."""
    reference = node.get("$ref")
    return root["$defs"][reference.rpartition("/")[2]] if reference else node


def value_text(node: Schema, root: Schema) -> str:
    """What may stand there: `auto` or integer ≥ 1."""
    node = resolved(node, root)
    if "pick" in node:
        kind = node["pick"]
        text = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        text = f"{text} or `{{fraction: ...}}`" if node.get("also") else text
        return f"`auto` or {text}" if node["auto"] else text
    if "const" in node:
        return _value(node["const"])
    if "enum" in node:
        return ", ".join(map(_value, node["enum"]))
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(value_text(choice, root) for choice in node["anyOf"]))
    kind = node.get("type", "")
    if kind == "array":
        if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])}: {value_text(node['prefixItems'][0], root)}"
        return f"list of: {value_text(node['items'], root)}" if node.get("items") else "list"
    bounds = [f"{sign} {_number(node[key])}" for key, sign in _BOUNDS if key in node]
    return " ".join(part for part in [_NAMES.get(kind, kind or "anything"), ", ".join(bounds)] if part)


def _value(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _yaml(value: Any) -> str:
    """A default as a recipe spells it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:g}" if isinstance(value, float) else str(value)
