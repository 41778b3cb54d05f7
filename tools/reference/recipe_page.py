"""docs/recipe.md: every setting of the recipe, and the options of every first-party entry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_core.recipe import Recipe
from finetooth_core.recipe_data import HeldOut, SourceRows
from finetooth_hooks import ENTRY_TYPES

from reference.options import model_table, resolved, schema_rows, table, value_text
from reference.pages import HOOKS, WRITTEN, offer_lines, page
from reference.workspace import ROOT, Workspace

EXAMPLE = Path("docs/recipes/quickstart.yaml")
PLACES: Mapping[str, str] = {
    "loader": "`model.loader`",
    "source": "`data.train`, `data.eval`",
    "format": "`data.format`",
    "renderer": "`data.renderer`",
    "processor": "`data.processor`",
    "family": "`model.family`",
    "loss": "an option of a method",
    "reward": "an option of a method or an evaluator",
    "tracker": "the list `trackers`",
    "evaluator": "the list `evaluate.evaluators`",
}
"""Where a recipe picks an entry, if not in the section of its kind."""

INTRODUCTION = """\
One recipe describes one run. [How a recipe is read](guides/recipe.md) explains picks, `auto`, overrides and errors;
this page lists every setting. `ft schema` prints the same as JSON Schema, with everything that is installed, and
`ft plugins explain NAME` shows the options of one entry."""


def recipe_page(workspace: Workspace) -> str:
    """The whole page."""
    root = Recipe.model_json_schema()
    kinds = [kind for kind in ENTRY_TYPES if kind not in ("face", "command")]
    lines = ["# Recipe reference", WRITTEN, INTRODUCTION]
    lines += [f"The recipe of `make demo`, [{EXAMPLE.name}](recipes/{EXAMPLE.name}):"]
    lines += [f"```yaml\n{(ROOT / EXAMPLE).read_text(encoding='utf-8').strip()}\n```"]
    lines += ["## Settings", "\n".join(_top_table(root))]
    for name, node in root["properties"].items():
        target = resolved(node, root)
        if "properties" in target:
            lines += [f"### {name}", target["description"]]
            lines.append("\n".join(table(("setting", "value", "default", "meaning"), list(schema_rows(target, root)))))
    lines += _plugins(root)
    lines += ["## Entries", _entries_introduction()]
    for kind in kinds:
        lines += _kind(kind, workspace)
    return page(lines)


def _top_table(root: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, node in root["properties"].items():
        target = resolved(node, root)
        required = name in root.get("required", ())
        if "properties" in target:
            text, default = f"mapping, see [{name}](#{name})", "required" if required else "-"
            text = "text, or " + text if name == "model" else text
        else:
            text, default = value_text(node, root), f"`{_yaml(node.get('default'))}`"
        rows.append((name, text, default, node.get("description") or target.get("description", "")))
    return table(("section", "value", "default", "meaning"), rows)


def _plugins(root: Mapping[str, Any]) -> list[str]:
    target = root["$defs"]["PluginUse"]
    rows = [
        (name, kind, "-" if default == "`null`" else default, meaning)
        for name, kind, default, meaning in schema_rows(target, root)
    ]
    return [
        "### plugins",
        target["description"] + " An item may also be the text of `use` alone.",
        "\n".join(table(("setting", "value", "default", "meaning"), rows)),
    ]


def _entries_introduction() -> str:
    return (
        "Each of them stands where the heading says, by its name or as a mapping with `name` and the options below."
        " Unknown options are errors."
    )


def _kind(kind: str, workspace: Workspace) -> list[str]:
    offers = workspace.of_kind(kind)
    if not offers:
        return []
    hook = next(name for name, cls in HOOKS.items() if cls.kind == kind)
    place = PLACES.get(kind, f"`{kind}`")
    lines = [f"### {kind}", f"Picked in {place}; brought by the hook [`{hook}`](hooks/{hook}.md)."]
    if kind == "source":
        lines += ["Every source also takes these keys, beside its own options:", "\n".join(model_table(SourceRows))]
        lines += ["In `data.eval`, instead of a source:", "\n".join(model_table(HeldOut))]
    for offer in offers:
        lines += offer_lines(offer, "####", up="..")
    return lines


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
