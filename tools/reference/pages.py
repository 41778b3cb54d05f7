"""The pages of docs/hooks: one for each hook, their index, and the array functions."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from finetooth_hooks import CONTRACT_VERSION, arrays, changes, protocols, specs
from finetooth_hooks.compute import losses
from finetooth_hooks.entries import Entry

from reference.classes import ClassDoc, read_class, read_functions, signature
from reference.docstrings import Docstring, parse
from reference.layout import WRITTEN, page, plain_table, python
from reference.library_pages import LIBRARIES
from reference.members import (
    PROTOCOLS,
    attribute_lines,
    default_cell,
    link,
    method_lines,
    type_classes,
    type_links,
)
from reference.options import cell, options_table, table
from reference.workspace import ROOT, Offer, Workspace

HOOKS = cast(Mapping[str, type[Entry]], specs.REGISTRATION_HOOKS)
"""Registration hooks and what they yield."""


WITHOUT_RECIPE = ("face", "exporter", "release_gate", "page", "command")
"""Kinds that no recipe picks: the options of their entries stand on the hook's page."""


def hook_pages(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """Name and text of every page."""
    yield "README.md", index_page(workspace)
    for hook in HOOKS:
        yield f"{hook}.md", registration_page(hook, workspace)
    for hook in specs.EVENT_HOOKS:
        yield f"{hook}.md", event_page(hook, workspace)
    yield "arrays.md", arrays_page()
    yield "changes.md", changes_page()


# --- hooks ------------------------------------------------------------------------------------------------------------


def index_page(workspace: Workspace) -> str:
    """All hooks at a glance."""
    doc = parse(specs.__doc__)
    lines = ["# Hooks", WRITTEN, doc.text, "## Registration hooks"]
    header = ("hook", "yields", "first-party entries")
    rows = []
    for hook, cls in HOOKS.items():
        names = ", ".join(f"`{offer.entry.name}`" for offer in workspace.of_kind(cls.kind))
        rows.append((f"[`{hook}`]({hook}.md)", hook_doc(hook).summary.removeprefix("Yield ").rstrip("."), names))
    lines += ["\n".join(plain_table(header, rows)), "## Event hooks", "In the order in which a run fires them."]
    events = [(f"[`{hook}`]({hook}.md)", hook_doc(hook).summary) for hook in specs.EVENT_HOOKS]
    lines.append("\n".join(plain_table(("hook", "fires when"), events)))
    lines.append("## See also")
    lines.append(
        "- [Types of the contract](types/README.md): what builders get, return and exchange.\n"
        "- [What changed for authors](changes.md): one line for each break of the contract.\n"
        "- [Array functions](arrays.md): what losses are written with.\n"
        "- What plugins import besides: "
        + ", ".join(f"[finetooth_{name}](library_{name}.md)" for name in LIBRARIES)
        + ", and the [operations of kernels](operations.md).\n"
        "- [Recipe reference](../recipe/README.md): every setting, and the options of every first-party entry.\n"
        "- [Write a plugin](../guides/write-a-plugin.md), [a plugin of each kind](../guides/plugins-by-kind.md) and"
        " [customise a run from CI](../guides/customise-from-ci.md)."
    )
    return page(lines)


def changes_page() -> str:
    """One line for each break of the contract."""
    lines = ["# What changed for authors", WRITTEN]
    lines.append(
        f"The contract is `finetooth-hooks` {CONTRACT_VERSION}. A plugin says which contract it is made for "
        f"(`finetooth-hooks>=2,<3`); one that is made for another is not imported, and the line that says so "
        "names what changed for it. To follow: do what the lines below say, raise the bound, and run "
        "`ft plugins doctor NAME`."
    )
    for number in changes.numbers()[:0:-1]:
        lines.append(f"## {number}")
        rows = [f"- **{change.about}**: {change.text}." for change in changes.read() if change.number == number]
        lines.append("\n".join(rows))
    return page(lines)


def registration_page(hook: str, workspace: Workspace) -> str:
    """A hook that yields entries: signature, example, entry type, what the builder returns, who implements it."""
    cls = HOOKS[hook]
    doc = hook_doc(hook)
    lines = [f"# {hook}", WRITTEN, doc.text, python(f"@hookspec\ndef {hook_signature(hook)}"), *example(doc)]
    guides = workspace.guides(hook)
    lines.append(f"Written whole in {', '.join(f'[{title}](../{path})' for title, path in guides)}." if guides else "")
    lines += _stranger(hook)
    entry = read_class(cls)
    lines += [f"## The entry `{cls.__name__}`", entry.doc.text]
    lines.append("\n".join(entry_table(entry)))
    lines += type_links(" ".join(attribute.type for attribute in entry.attributes))
    lines += builder_lines(cls)
    lines.append("## First-party entries")
    offers = workspace.of_kind(cls.kind)
    if not offers:
        lines.append("There is none yet.")
    elif cls.kind in WITHOUT_RECIPE:
        for offer in offers:
            lines += offer_lines(offer, "###")
    else:
        lines.append("\n".join(offers_table(offers)))
    return page(lines)


def event_page(hook: str, workspace: Workspace) -> str:
    """A hook that observes a run: signature, example, arguments, who implements it."""
    doc = hook_doc(hook)
    lines = [f"# {hook}", WRITTEN, doc.text, python(f"@hookspec\ndef {hook_signature(hook)}"), *example(doc)]
    lines.append("An implementation may leave out arguments it does not need.")
    for name, annotation in inspect.get_annotations(getattr(specs, hook)).items():
        known = type_classes().get(annotation)
        if name != "return" and known is not None:
            described = read_class(known)
            lines += [f"## `{name}`: {link(annotation)}", described.doc.text, *attribute_lines(described)]
    lines.append("## Implemented by")
    files = workspace.implementations(hook)
    lines.append("\n".join(f"- [{name}](../../{name})" for name in files) or "No first-party plugin or guide yet.")
    return page(lines)


def hook_doc(hook: str) -> Docstring:
    """The docstring of a hookspec."""
    return parse(getattr(specs, hook).__doc__)


def hook_signature(hook: str) -> str:
    """`ft_losses() -> Iterable[Loss]`."""
    (node,) = ast.parse(inspect.getsource(getattr(specs, hook))).body
    assert isinstance(node, ast.FunctionDef)
    return signature(node)


def _stranger(hook: str) -> Iterator[str]:
    """The whole file of docs/hooks/examples that implements a hook; tests/docs/test_docs_hook_examples.py runs it."""
    for file in sorted((ROOT / "docs/hooks/examples").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if f"\ndef {hook}(" in text:
            yield f"A whole plugin, [{file.name}](examples/{file.name}), used with `--plugins {file.name}`:"
            yield python(text.rstrip())


def example(doc: Docstring) -> list[str]:
    """The example of a docstring, as a block of code."""
    return [python(doc.code["Example"])] if "Example" in doc.code else []


def entry_table(entry: ClassDoc) -> list[str]:
    """Attributes of an entry type, those of every entry first."""
    attributes = [*read_class(Entry).attributes, *entry.attributes]
    rows = [(a.name, f"`{a.type}`", default_cell(a), a.meaning) for a in attributes]
    return table(("attribute", "type", "default", "meaning"), rows)


def builder_lines(cls: type[Entry]) -> list[str]:
    """What the function that an entry names in `build` takes and returns."""
    lines = ["## What the builder returns"]
    if cls.kind == "command":
        return [
            *lines,
            "`build` names a `click.Command` itself, not a function with options. Its `click.Context.obj` is a"
            f" {link('CommandContext')}.",
        ]
    built: type[Any] = losses.LossFn if cls.kind == "loss" else getattr(protocols, cls.__name__)
    described = read_class(built)
    gathered = built.__module__ in {module.__name__ for module in PROTOCOLS}
    module = protocols.__name__ if gathered else built.__module__
    context = "CommandContext" if cls.kind in ("face", "exporter", "release_gate", "page") else "Context"
    lines.append(
        "`build` names a class or a function. It gets those that it has parameters for: `options: MyOptions`, a"
        f" subclass of {link('Options')}, and `context: {context}`, where the {link(context)} reaches the rest of the"
        f" run. It makes a `{built.__name__}`, the protocol `{module}.{built.__name__}`:"
    )
    return [*lines, described.doc.text, *attribute_lines(described), *method_lines(described)]


def offers_table(offers: Sequence[Offer]) -> list[str]:
    """First-party entries, each with a link to its options in the recipe reference."""
    rows = []
    for offer in offers:
        name = f"[`{offer.entry.name}`](../recipe/{offer.entry.kind}.md#{offer.entry.name})"
        name += " (the default)" if offer.entry.default else ""
        rows.append((name, cell(offer.entry.summary), f"[{offer.distribution}](../../{offer.folder})"))
    return plain_table(("entry and its options", "what it is", "package"), rows)


def offer_lines(offer: Offer, heading: str, options: Sequence[str] | None = None) -> list[str]:
    """One first-party entry with its options.

    Args:
        offer: the entry and where it comes from.
        heading: the marks of its heading, `##`.
        options: the lines about its options, if they are not its whole table.
    """
    entry = offer.entry
    if entry.kind == "command":
        summary = f"`ft {entry.name}`: {entry.summary}."
        options = []
    else:
        summary = f"{entry.summary[:1].upper()}{entry.summary[1:]}." if entry.summary else ""
        summary = f"\\{summary}" if summary.startswith("#") else summary  # markup that is described is no heading
        options = ["\n".join(options_table(entry))] if options is None else options
    source = f"From [{offer.distribution}](../../{offer.folder})" + ("; the default." if entry.default else ".")
    return [f"{heading} {entry.name}", f"{summary} {source}".strip(), *options]


def arrays_page() -> str:
    """The functions that losses are written with."""
    doc = parse(arrays.__doc__)
    rows = [(f.signature, f.doc.summary) for f in read_functions(arrays) if f.name not in ("register", "library")]
    return page(["# Array functions", WRITTEN, doc.text, "\n".join(table(("function", "gives"), rows))])
