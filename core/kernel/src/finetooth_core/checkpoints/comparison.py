"""Changes between a run and the recipe that resumes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.context import Catalog
from finetooth_hooks.errors import FinetoothError
from finetooth_recipes.recipe_picks import AUTO
from finetooth_saving.run_folder import ALSO_FIXED, DECIDED, FIXED
from finetooth_toolbox.files.trained_over import changed_files

from finetooth_core.settings.recipe import Recipe, validate_options

HARMLESS = (
    "output",
    "trackers",
    "export",
    "checkpoint",
    "profile",
    "scale",
    "evaluate",
    "plugins",
    "hardware",
    "data.accept_dropped",
    "data.cache",
    "data.cache_gb",
    "data.workers",
    "train.accept_memory",
    "train.epochs",
    "train.max_steps",
    "train.on_bad_step",
)
"""Settings that do not affect finished steps."""

PICKS: Mapping[str, str] = {
    **{".".join(path): kind for kind, path in (FIXED | ALSO_FIXED).items()},
    "data.format": "format",
    "hardware": "hardware",
}
"""Settings that pick one entry, with its kind."""


@dataclass(frozen=True)
class Changes:
    """Changes as sentences, `setting: before -> now`.

    Attributes:
        harmless: those that do not affect finished steps.
        grave: the others.
    """

    harmless: tuple[str, ...] = ()
    grave: tuple[str, ...] = ()


def compare(before: Recipe, now: Recipe, catalog: Catalog, plan: Mapping[str, Any]) -> Changes:
    """Differences between two recipes after filling in defaults and `auto`.

    Args:
        plan: decisions of `auto`; the content of a plan.json.
    """
    old, new = effective(before, catalog, plan), effective(now, catalog, plan)
    harmless: list[str] = []
    grave: list[str] = []
    for setting in sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
        change = f"{setting}: {_shown(old, setting)} -> {_shown(new, setting)}"
        (harmless if is_harmless(setting) else grave).append(change)
    return Changes(tuple(harmless), tuple(grave))


def with_moved_base(changes: Changes, before: Mapping[str, str], now: Mapping[str, str]) -> Changes:
    """The same without the place of an unchanged base, which does not matter.

    Args:
        before, now: SHA-256 of the files of the base, by name; empty if unknown.
    """
    if not before or not now or changed_files(before, now):
        return changes
    named = tuple(change for change in changes.grave if change.startswith("model.name: "))
    return Changes((*changes.harmless, *named), tuple(change for change in changes.grave if change not in named))


def is_harmless(setting: str) -> bool:
    """Whether a change of the setting does not affect finished steps."""
    return any(setting == harmless or setting.startswith(f"{harmless}.") for harmless in HARMLESS)


def effective(recipe: Recipe, catalog: Catalog, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting with its value, dotted, as if the recipe had written it all."""
    content: dict[str, Any] = recipe.model_dump(mode="json")
    content["model"]["name"] = recipe.dump_model_name()
    for setting, kind in PICKS.items():
        holder, key = _holder(content, setting)
        if holder is not None and holder.get(key) is not None:
            holder[key] = _whole(catalog, kind, holder[key], plan.get("picks", {}))
    for name in DECIDED:
        if content["train"][name] == AUTO:
            content["train"][name] = plan.get("train", {}).get(name, AUTO)
    return dict(_flat(content, ""))


def _whole(catalog: Catalog, kind: str, pick: Any, picks: Mapping[str, str]) -> Any:
    """A pick by its full name, with all its options."""
    picked = {"name": pick} if isinstance(pick, str) else dict(pick)
    if picked.get("name") == AUTO:
        if kind not in picks:
            return picked
        picked["name"] = picks[kind]
    try:
        registered = catalog.get(kind, picked["name"])
        options = validate_options(catalog, kind, {**picked, "name": registered.full_name})
    except FinetoothError:
        return picked  # reported where the recipe is used
    return {"name": registered.full_name, **options.model_dump(mode="json")}


def _holder(content: dict[str, Any], setting: str) -> tuple[dict[str, Any] | None, str]:
    *path, key = setting.split(".")
    holder: Any = content
    for part in path:
        holder = holder.get(part) if isinstance(holder, dict) else None
    return (holder if isinstance(holder, dict) else None), key


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value)]


def _shown(values: Mapping[str, Any], setting: str) -> str:
    return json.dumps(values[setting], ensure_ascii=False, default=str) if setting in values else "not set"
