"""The pages of docs/recipe: every setting of a recipe, and for each kind the options of its first-party entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetooth_core.settings.recipe import Recipe
from finetooth_hooks import ENTRY_TYPES
from finetooth_recipes.recipe_data import HeldOut, SourceRows

from reference.layout import WRITTEN, page, plain_table
from reference.options import model_table, option_rows, resolved, schema_rows, table, value_text
from reference.pages import HOOKS, WITHOUT_RECIPE, offer_lines
from reference.workspace import ROOT, Workspace

EXAMPLE = Path("docs/recipes/quickstart.yaml")
PLACES: Mapping[str, str] = {
    "loader": "`model.loader`",
    "quantizer": "`quantization`",
    "source": "`data.train`, `data.eval`",
    "format": "`data.format`",
    "renderer": "`data.renderer`",
    "processor": "`data.processor`",
    "family": "`model.family`",
    "loss": "an option of a method",
    "reward": "an option of a method or an evaluator",
    "environment": "an option of a method",
    "sampler": "an option of a method",
    "tracker": "the list `trackers`",
    "evaluator": "the list `evaluate.evaluators`",
}
"""Where a recipe picks an entry, if not in the section of its kind."""

INTRODUCTION = """\
One recipe describes one run. [How a recipe is read](../guides/recipe.md) explains picks, `auto`, overrides and errors;
these pages list every setting. `ft schema` prints the same as JSON Schema, with everything that is installed, and
`ft plugins explain NAME` shows the options of one entry."""

ENTRIES = """\
Each of them stands in its place by its name, or as a mapping with `name` and the options that its page lists. Unknown
options are errors."""


LEAST_SHARED = 12
"""Entries that share fewer options are each written whole."""


def recipe_pages(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """Name and text of every page, the index first."""
    kinds = [kind for kind in ENTRY_TYPES if kind not in WITHOUT_RECIPE and workspace.of_kind(kind)]
    yield "README.md", index_page(workspace, kinds)
    for kind in kinds:
        yield f"{kind}.md", kind_page(kind, workspace)


def index_page(workspace: Workspace, kinds: Sequence[str]) -> str:
    """The settings of a recipe's own sections, and which page has the entries of a kind."""
    root = Recipe.model_json_schema()
    lines = ["# Recipe reference", WRITTEN, INTRODUCTION]
    lines += [f"The recipe of `make demo`, [{EXAMPLE.name}](../recipes/{EXAMPLE.name}):"]
    lines += [f"```yaml\n{(ROOT / EXAMPLE).read_text(encoding='utf-8').strip()}\n```"]
    lines += ["## Entries", ENTRIES]
    rows = [
        (f"[{kind}]({kind}.md)", place(kind), ", ".join(f"`{offer.entry.name}`" for offer in workspace.of_kind(kind)))
        for kind in kinds
    ]
    lines.append("\n".join(plain_table(("kind", "picked in", "first-party entries"), rows)))
    lines += ["## Settings", "\n".join(_top_table(root))]
    for name, node in root["properties"].items():
        target = resolved(node, root)
        if "properties" in target:
            lines += [f"### {name}", target["description"]]
            lines.append("\n".join(table(("setting", "value", "default", "meaning"), list(schema_rows(target, root)))))
    return page([*lines, *_plugins(root)])


def kind_page(kind: str, workspace: Workspace) -> str:
    """The entries of a kind, each with its options."""
    hook = next(name for name, cls in HOOKS.items() if cls.kind == kind)
    lines = [f"# {kind}", WRITTEN, f"Picked in {place(kind)}; brought by the hook [`{hook}`](../hooks/{hook}.md)."]
    lines.append("All settings and all kinds: [recipe reference](README.md).")
    if kind == "source":
        lines += ["Every source also takes these keys, beside its own options:", "\n".join(model_table(SourceRows))]
        lines += ["In `data.eval`, instead of a source:", "\n".join(model_table(HeldOut))]
    earlier: dict[str, list[tuple[str, ...]]] = {}
    for offer in workspace.of_kind(kind):
        rows = option_rows(offer.entry)
        lines += offer_lines(offer, "##", differences(rows, earlier))
        earlier[offer.entry.name] = rows
    return page(lines)


def differences(rows: Sequence[tuple[str, ...]], earlier: Mapping[str, Sequence[tuple[str, ...]]]) -> list[str] | None:
    """Where most of an entry's options are those of an entry above it: only what differs.

    Args:
        rows: the options of the entry.
        earlier: the options of the entries above it on the page, by name.

    Returns:
        Lines for the page; None if no entry above shares more than half of the options, or too few to be worth it.
    """
    if not earlier:
        return None
    name, nearest = max(earlier.items(), key=lambda item: (len(set(item[1]) & set(rows)), -len(item[1])))
    shared = set(nearest) & set(rows)
    if len(shared) < LEAST_SHARED or 2 * len(shared) < max(len(rows), len(nearest)):
        return None
    own = [row for row in rows if row not in shared]
    names = {row[0] for row in rows}
    missing = [f"`{row[0]}`" for row in nearest if row[0] not in names]
    text = f"It takes the {len(shared)} options of [{name}](#{name})" if not missing else (
        f"It takes {len(shared)} options of [{name}](#{name}), but not {', '.join(missing)}"
    )  # fmt: skip
    if not own:
        return [f"{text}."]
    return [f"{text}. These are its own, or differ:", "\n".join(table(("option", "value", "default", "meaning"), own))]


def place(kind: str) -> str:
    """Where a recipe picks an entry of a kind."""
    return PLACES.get(kind, f"`{kind}`")


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


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
