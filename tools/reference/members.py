"""Attributes and methods of a class of the contract, and links to the types that they name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from finetooth_hooks import (
    bases,
    checkpoints,
    claims,
    context,
    continuous,
    engine,
    environments,
    errors,
    evaluators,
    exporters,
    faces,
    methods,
    models,
    options,
    plan,
    releases,
    renderers,
    reports,
    rollouts,
    run,
    sampling,
    trackers,
)
from finetooth_hooks import entries as entry_types
from finetooth_hooks.compute import (
    adapters,
    attention,
    backends,
    collectives,
    heads,
    held,
    kernels,
    layers,
    loss_totals,
    losses,
    outputs,
    quantizers,
    savings,
    serves,
    strategies,
    updates,
    ways,
)
from finetooth_hooks.data import (
    datum,
    examples,
    preparation,
    problems,
    recipe_rows,
    sources,
)
from finetooth_hooks.entries import Entry

from reference.classes import Attribute, ClassDoc, Method
from reference.options import table

PROTOCOLS: tuple[ModuleType, ...] = (
    models, layers, heads, renderers, sources, adapters, updates, methods, evaluators, trackers, backends, attention,
    kernels, quantizers, collectives, checkpoints, exporters, faces, strategies, releases, environments,
)  # fmt: skip
"""Where the classes that `protocols` gathers are written down."""
BUILDER_KINDS = {cls.__name__: kind for kind, cls in entry_types.ENTRY_TYPES.items()}
TYPE_MODULES: tuple[ModuleType, ...] = (
    entry_types,
    options,
    errors,
    examples,
    problems,
    preparation,
    datum,
    losses,
    loss_totals,
    engine,
    sampling,
    continuous,
    held,
    savings,
    serves,
    claims,
    *PROTOCOLS,
    bases,
    outputs,
    plan,
    reports,
    rollouts,
    run,
    recipe_rows,
    ways,
    context,
)
"""Modules whose public classes the pages of types show."""


def type_classes() -> Mapping[str, type[Any]]:
    """Classes on the pages of types, by name."""
    return {cls.__name__: cls for module in TYPE_MODULES for cls in public_classes(module)}


def public_classes(module: ModuleType) -> list[type[Any]]:
    """Public classes of a module in the order of its source; protocols that have a hook's page are left out."""
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if module is entry_types:  # each entry has its hook's page
        return [cls for cls in found if cls is Entry or not issubclass(cls, Entry)]
    return [cls for cls in found if not (module in PROTOCOLS and cls.__name__ in BUILDER_KINDS)]


def attribute_lines(described: ClassDoc, *, linked: bool = True) -> list[str]:
    """The table of attributes, and links to the types it names."""
    if not described.attributes:
        return []
    rows = [(a.name, f"`{a.type}`", default_cell(a), a.meaning) for a in described.attributes]
    if all(row[2] == "-" for row in rows):
        lines = table(("attribute", "type", "meaning"), [(name, kind, meaning) for name, kind, _, meaning in rows])
    else:
        lines = table(("attribute", "type", "default", "meaning"), rows)
    return ["\n".join(lines), *(type_links(" ".join(a.type for a in described.attributes)) if linked else [])]


def method_lines(described: ClassDoc, *, linked: bool = True) -> list[str]:
    """Methods as a list, and links to the types they name."""
    if not described.methods:
        return []
    lines = ["\n".join(_method(method) for method in described.methods)]
    return lines + (type_links(" ".join(method.signature for method in described.methods)) if linked else [])


def _method(method: Method) -> str:
    text = " ".join(method.doc.text.split())
    lines = [f"- `{method.signature}`" + (f": {text}" if text else "")]
    lines += [f"  - `{name}`: {meaning}" for name, meaning in method.doc.meanings("Args").items()]
    lines += [f"  - raises `{name}`: {meaning}" for name, meaning in method.doc.meanings("Raises").items()]
    return "\n".join(lines)


def type_links(text: str) -> list[str]:
    """Links to the types that a text names."""
    known = type_classes()
    named = [name for name in dict.fromkeys(re.findall(r"\b[A-Z]\w+", text)) if name in known]
    return [f"Types: {', '.join(map(link, named))}."] if named else []


def link(name: str) -> str:
    """A link to a type, from a page of docs/hooks."""
    return f"[`{name}`](types/{page_of(type_classes()[name].__module__)}#{name.lower()})"


def page_of(module: str) -> str:
    """The name of the page with the types of a module."""
    return f"{module.rpartition('.')[2]}.md"


def default_cell(attribute: Attribute) -> str:
    """The default of an attribute as a cell of a table."""
    return f"`{attribute.default}`" if attribute.default is not None else "-"
