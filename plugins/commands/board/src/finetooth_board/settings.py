"""The schema of recipes as a form: which settings there are, what they mean, and the recipe of a form that was filled
in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

import yaml
from finetooth_hooks import UserError

PICKS = ("method", "adapter", "quantization", "optimizer", "schedule")
"""Sections that pick an entry, whose options depend on which."""
KINDS = {"quantization": "quantizer"}
"""The kind of entry that a section picks, where it has another name."""
SECTIONS = ("data", "train", "evaluate", "checkpoint")
"""Sections whose settings are always the same."""

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """A setting.

    Attributes:
        name: its path in a recipe.
        about: what it means, as text.
        default: as YAML; empty without one.
        choices: all the values that it takes; empty if there are others.
    """

    name: str
    about: str
    default: str
    choices: tuple[str, ...]


def entries_of(schema: Schema, kind: str) -> dict[str, str]:
    """Entries of a kind by their short names, with what they do."""
    summaries = {}
    for full, definition in schema.get("$defs", {}).items():
        name = definition.get("properties", {}).get("name", {})
        if full.startswith(f"{kind}.") and "enum" in name:
            short = next((alias for alias in name["enum"] if ":" not in alias), name["enum"][0])
            summaries[short] = name.get("description", "")
    return dict(sorted(summaries.items()))


def picks_of(schema: Schema) -> dict[str, dict[str, str]]:
    """What each section of `PICKS` may pick."""
    return {section: entries_of(schema, KINDS.get(section, section)) for section in PICKS}


def fields_of(schema: Schema, picked: Mapping[str, str]) -> dict[str, list[Field]]:
    """Settings by section: of those with fixed settings, and of what is picked."""
    by_section = {name: list(_fields(schema, name, schema["properties"][name])) for name in SECTIONS}
    for section, entry in picked.items():
        for full, definition in schema["$defs"].items():
            names = definition.get("properties", {}).get("name", {}).get("enum", ())
            if entry in names and full.startswith(f"{KINDS.get(section, section)}."):
                by_section[section] = list(_fields(schema, section, definition))
                break
    return {name: fields for name, fields in by_section.items() if fields}


def _fields(schema: Schema, section: str, definition: Mapping[str, Any]) -> Iterator[Field]:
    if "$ref" in definition:
        definition = schema["$defs"][definition["$ref"].rpartition("/")[2]]
    for name, about in definition.get("properties", {}).items():
        if name == "name" or f"{section}.{name}" == "data.train":
            continue
        default = about.get("default")
        yield Field(
            f"{section}.{name}", " ".join(str(about.get("description", "")).split()),
            "" if default is None else _yaml(default), tuple(_choices(about)),
        )  # fmt: skip


def _yaml(value: Any) -> str:
    """A value on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _choices(about: Mapping[str, Any]) -> list[str]:
    """All the values that a setting takes, as YAML; none if it takes others too."""
    if "enum" in about:
        return [_yaml(value) for value in about["enum"]]
    if "const" in about:
        return [_yaml(about["const"])]
    if about.get("type") == "boolean":
        return ["true", "false"]
    parts = [_choices(part) for part in about.get("anyOf", ()) if part.get("type") != "null"]
    return [value for part in parts for value in part] if parts and all(parts) else []


def recipe_of(form: Mapping[str, str], picked: Mapping[str, str]) -> str:
    """The recipe of a form: model, rows, what was picked, and the settings that were filled in.

    Raises:
        UserError: a value is not YAML.
    """
    recipe: dict[str, Any] = {"model": form.get("model", ""), "data": {"train": form.get("data", "")}}
    recipe |= {section: {"name": entry} for section, entry in picked.items()}
    for path, value in form.items():
        section, dot, name = path.partition(".")
        if not dot or not value.strip() or (section in PICKS and section not in picked):
            continue
        try:
            recipe.setdefault(section, {})[name] = _read(value)
        except yaml.YAMLError as error:
            raise UserError(f"{path}: {value!r} is not a value of YAML", action="put it in quotes") from error
    for section, settings in recipe.items():
        if isinstance(settings, dict) and set(settings) == {"name"}:
            recipe[section] = settings["name"]
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)


def _read(text: str) -> Any:
    """A value as a recipe has it: `2e-4` is a number; `no`, `on` and a day are texts, unlike in YAML 1.1."""
    with suppress(ValueError):
        return json.loads(text)
    value = yaml.safe_load(text)
    return text if isinstance(value, bool | date) else value
