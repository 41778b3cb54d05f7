"""Which framework a run computes with: that of its backend; where the recipe leaves that open, that of the hardware."""

from __future__ import annotations

from finetooth_hooks.entries import Backend, Hardware

from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_core.plugins.part_builder import Builder, is_auto
from finetooth_core.settings.recipe import Recipe


def framework_of(recipe: Recipe, builder: Builder) -> str:
    """The framework by which loaders, adapters, optimizers and the default backend are chosen.

    If the recipe names neither backend nor hardware, and backends of several frameworks are defaults, the hardware that
    is there and has the highest rank decides.

    Returns:
        `torch`, `mlx`, `numpy`; empty if nothing decides it, which the choice of a backend then says.

    Raises:
        PluginError: no backend or hardware has the name that the recipe gives.
    """
    for kind, pick in (("backend", recipe.backend), ("hardware", recipe.hardware)):
        if not is_auto(pick):
            entry = builder.entry(kind, pick, setting=kind).entry
            return entry.framework if isinstance(entry, Backend | Hardware) else ""
    frameworks = {r.entry.framework for r in builder.catalog.defaults("backend") if isinstance(r.entry, Backend)}
    if len(frameworks) == 1:
        return frameworks.pop()
    for registered in by_rank(builder.catalog):
        entry = registered.entry
        if not isinstance(entry, Hardware) or entry.framework not in frameworks:
            continue
        if not builder.build("hardware", registered.full_name, setting="hardware").part.missing():
            return entry.framework
    return ""


def by_rank(catalog: Catalog, framework: str = "") -> list[Registered]:
    """Hardware, the best first.

    Args:
        framework: only hardware for it; empty is all.
    """
    return sorted(catalog.speaking("hardware", framework), key=_rank, reverse=True)


def _rank(registered: Registered) -> tuple[int, str]:
    entry = registered.entry
    return (entry.rank if isinstance(entry, Hardware) else 0, registered.full_name)
