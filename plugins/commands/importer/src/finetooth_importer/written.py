"""A recipe as YAML, with what its keys came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from finetooth_toolbox.cli.recipe_arguments import SECTIONS

from finetooth_importer.account import Account, Line


class _Plain(yaml.SafeDumper):
    """Writes what stands twice twice: nobody edits `&id001`."""

    def ignore_aliases(self, data: object) -> bool:
        """Always."""
        return True


def as_yaml(account: Account, tool: str, name: str) -> str:
    """The recipe with a comment on top, and one above each section that needs a note."""
    recipe = tidied(account.recipe)
    parts = [f"# From {name}, a configuration of {tool}, by `ft import`."]
    for section in sorted(recipe, key=lambda key: SECTIONS.index(key) if key in SECTIONS else len(SECTIONS)):
        for line in account:
            if line.setting.split(".")[0] == section and line.note and line.outcome in ("otherwise", "default"):
                parts.append(f"# {_line_text(line)}")
        parts.append(
            yaml.dump(
                {section: recipe[section]}, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100
            ).rstrip()
        )
    left = [line for line in account if line.outcome == "not taken"]
    if left:
        parts += ["", "# Not taken:", *(f"#   {_line_text(line)}" for line in left)]
    return "\n".join(parts) + "\n"


def tidied(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings with nothing but a name become the name."""
    made: dict[str, Any] = {}
    for key, value in recipe.items():
        inner = tidied(value) if isinstance(value, dict) else value
        made[key] = inner["name"] if isinstance(inner, dict) and set(inner) == {"name"} else inner
    return made


def _line_text(line: Line) -> str:
    value = shortened(line.value)
    if line.outcome == "default":
        return f"{line.key}: {value} is the default there" + (f": {line.note}" if line.note else "")
    return f"{line.key}: {value}" + (f" ({line.note})" if line.note else "")


def shortened(value: Any, width: int = 60) -> str:
    """A value in one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."
