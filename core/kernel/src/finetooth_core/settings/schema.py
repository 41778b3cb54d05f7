"""JSON Schema of the recipe, with the options of every installed entry at every pick."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_hooks.context import Catalog, Registered
from finetooth_hooks.errors import PluginError, RecipeError
from finetooth_recipes.recipe_data import HeldOut, SourceRows
from finetooth_recipes.recipe_picks import AUTO
from finetooth_toolbox.text.nearest import nearest

from finetooth_core.plugins.builders import options_model
from finetooth_core.settings.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def recipe_schema(catalog: Catalog) -> Schema:
    """The schema of a whole recipe; imports the builder of every installed entry that a recipe can pick."""
    return _Builder(catalog).schema()


def field_schema(catalog: Catalog, field: str) -> Schema:
    """The part of the schema that describes one setting.

    Args:
        field: dotted path, `train.batch_size`; for an option of a pick, its name with or without the entry's name
            before it: `adapter.rank`, `adapter.NAME.rank`.

    Raises:
        RecipeError: no setting has this name; names the nearest.
    """
    keys = _keys(field)
    return field_in(_Builder(catalog, _kinds_under(keys[0]) if keys else set()).schema(), field)


def field_in(schema: Schema, field: str) -> Schema:
    """As `field_schema`, but from an existing schema: that of `recipe_schema`, or one with only the kinds that the
    setting needs.

    Raises:
        RecipeError: no setting has this name; names the nearest.
    """
    keys = _keys(field)
    nodes = [schema]
    for depth, key in enumerate(keys):
        here = {name: child for node in nodes for name, child in _below(node, schema).items()}
        nodes = [child for node in nodes for name, child in _below(node, schema).items() if name == key]
        if not nodes:
            close = nearest(key, here)
            known = f"known: {', '.join(here)}" if here else "it has none below it"
            action = f"did you mean {'.'.join([*keys[:depth], close])}?" if close else known
            raise RecipeError(".".join(keys[: depth + 1]), "no setting has this name", action=action)
    picked = nodes[0] if len(nodes) == 1 else {"anyOf": nodes}
    definitions = _used(picked, schema.get("$defs", {}))
    return {**picked, **({"$defs": definitions} if definitions else {})}


def _keys(field: str) -> list[str]:
    return [key for key in field.split(".") if not key.isdigit()]


class _Builder:
    """Puts the schema together; the options of entries become definitions `KIND.DISTRIBUTION:NAME`.

    Args:
        kinds: kinds with options in the schema, whose builders are imported; None for all.
    """

    def __init__(self, catalog: Catalog, kinds: set[str] | None = None) -> None:
        self.catalog = catalog
        self.kinds = kinds
        self.definitions: dict[str, Schema] = {}

    def schema(self) -> Schema:
        plain = Recipe.model_json_schema()
        own = plain.pop("$defs", {})
        filled = self._fill(plain)
        self.definitions |= {name: self._fill(definition) for name, definition in own.items()}
        filled["properties"]["model"] = {
            "description": filled["properties"]["model"].get("description", ""),
            "anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/ModelSection"}],
        }
        return {"$schema": DIALECT, **filled, "$defs": self.definitions}

    def _fill(self, node: Any) -> Any:
        """Replace every mark `{"pick": KIND}` in a schema by the installed entries."""
        if isinstance(node, list):
            return [self._fill(item) for item in node]
        if not isinstance(node, dict):
            return node
        if isinstance(node.get("pick"), str) and "auto" in node:
            rest = {key: value for key, value in node.items() if key not in ("pick", "auto", "also")}
            also = [self._held_out()] if node.get("also") == HeldOut.__name__ else []
            return {**rest, "anyOf": [*self._picks(node["pick"], auto=node["auto"]), *also]}
        return {key: self._fill(value) for key, value in node.items()}

    def _picks(self, kind: str, *, auto: bool) -> list[Schema]:
        """Ways to pick an entry: `auto`, its name, a mapping with `name` and options. A source may also be a
        reference."""
        entries = self.catalog.all(kind) if self.kinds is None or kind in self.kinds else ()
        names = sorted({name for registered in entries for name in _names(registered)})
        by_name: list[Schema] = [{"enum": ([AUTO] if auto else []) + names}]
        if kind == "source":
            by_name = [{"type": "string", "minLength": 1}]
        return by_name + [self._mapping(registered, auto and registered.entry.default) for registered in entries]

    def _mapping(self, registered: Registered, default: bool) -> Schema:
        """A reference to the schema of `{name: NAME, ...options}`."""
        entry = registered.entry
        key = f"{entry.kind}.{registered.full_name}{'.default' if default else ''}"
        self.definitions[key] = {**self._options(registered), "title": entry.name}
        names = [*_names(registered), *([AUTO] if default else [])]
        self.definitions[key]["properties"] = {
            "name": {"enum": names, "description": entry.summary},
            **self.definitions[key].get("properties", {}),
            **(self._source_rows() if entry.kind == "source" else {}),
        }
        self.definitions[key]["required"] = ["name", *self.definitions[key].get("required", [])]
        return {"$ref": f"#/$defs/{_escaped(key)}"}

    def _source_rows(self) -> Schema:
        """Keys that every source takes in addition to its own options."""
        properties: Schema = self._fill(SourceRows.model_json_schema()["properties"])
        return properties

    def _held_out(self) -> Schema:
        """`data.eval` as a part of the training rows."""
        self.definitions[HeldOut.__name__] = HeldOut.model_json_schema()
        return {"$ref": f"#/$defs/{HeldOut.__name__}"}

    def _options(self, registered: Registered) -> Schema:
        """The schema of an entry's options; open if they are unknown here."""
        entry = registered.entry
        try:
            schema = options_model(entry, registered.distribution).model_json_schema(
                ref_template=f"#/$defs/{entry.kind}.{registered.full_name}.{{model}}"
            )
        except PluginError as error:
            return {"type": "object", "description": f"options unknown here: {error}"}
        for name, definition in schema.pop("$defs", {}).items():
            self.definitions[f"{entry.kind}.{registered.full_name}.{name}"] = definition
        return schema


def _kinds_under(section: str) -> set[str]:
    """Kinds that can be picked in a section of the recipe."""
    plain = Recipe.model_json_schema()
    part = plain["properties"].get(section, {})
    kinds: set[str] = set()
    waiting: list[Any] = [part, *_used(part, plain.get("$defs", {})).values()]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            kinds |= {node["pick"]} if isinstance(node.get("pick"), str) else set()
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return kinds


def _names(registered: Registered) -> tuple[str, str]:
    return registered.entry.name, registered.full_name


def _escaped(key: str) -> str:
    """A definition's name in a reference (JSON Pointer, RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _below(node: Mapping[str, Any], schema: Schema) -> dict[str, Schema]:
    """Named parts of a schema: properties, and the parts of each way to pick an entry, also under the entry's name."""
    node = _resolved(node, schema)
    parts: dict[str, Schema] = {}
    several: dict[str, list[Schema]] = {}
    for name, part in node.get("properties", {}).items():
        several.setdefault(name, []).append(part)
    for choice in (*node.get("anyOf", ()), *((node["items"],) if isinstance(node.get("items"), dict) else ())):
        target = _resolved(choice, schema)
        if target.get("title") and "name" in target.get("properties", {}) and target is not node:
            parts[target["title"]] = target
        for name, part in _below(target, schema).items():
            if name not in several or part not in several[name]:
                several.setdefault(name, []).append(part)
    for name, schemas in several.items():
        parts.setdefault(name, schemas[0] if len(schemas) == 1 else {"anyOf": schemas})
    return parts


def _resolved(node: Mapping[str, Any], schema: Schema) -> Schema:
    """Follow `$ref`; a description next to it stays."""
    reference = node.get("$ref")
    if not isinstance(reference, str):
        return dict(node)
    name = reference.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
    beside = {key: value for key, value in node.items() if key != "$ref"}
    return {**schema.get("$defs", {}).get(name, {}), **beside}


def _used(node: Any, definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """The definitions that a schema refers to, directly or not."""
    used: dict[str, Schema] = {}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if isinstance(current, list):
            waiting += current
        elif isinstance(current, dict):
            reference = current.get("$ref")
            if isinstance(reference, str):
                name = reference.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
                if name in definitions and name not in used:
                    used[name] = definitions[name]
                    waiting.append(definitions[name])
            waiting += current.values()
    return used
