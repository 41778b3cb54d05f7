"""The pages of docs/hooks: one for each hook, their index, the contract's types and the array functions."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import finetooth_hooks
from finetooth_hooks import (
    arrays,
    attention,
    backends,
    bases,
    capabilities,
    checkpoints,
    collectives,
    context,
    continuous,
    datum,
    engine,
    errors,
    examples,
    faces,
    kernels,
    losses,
    models,
    options,
    plan,
    preparation,
    problems,
    protocols,
    quantizers,
    renderers,
    reports,
    run,
    sampling,
    sources,
    specs,
    training,
)
from finetooth_hooks import entries as entry_types
from finetooth_hooks.entries import Entry

from reference.classes import Attribute, ClassDoc, Method, read_class, read_constants, read_functions, signature
from reference.docstrings import Docstring, parse
from reference.options import cell, options_table, table
from reference.workspace import Offer, Workspace

WRITTEN = "<!-- Written by tools/make_reference.py from the code; edit the docstrings there, then run `make docs`. -->"
HOOKS = cast(Mapping[str, type[Entry]], specs.REGISTRATION_HOOKS)
"""Registration hooks and what they yield."""
PROTOCOLS: tuple[ModuleType, ...] = (
    models, renderers, sources, training, backends, attention, kernels, quantizers, collectives, checkpoints, faces,
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
    engine,
    sampling,
    continuous,
    *PROTOCOLS,
    bases,
    plan,
    reports,
    run,
    context,
)
"""Modules whose public classes the page of types shows."""


def hook_pages(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """Name and text of every page."""
    yield "README.md", index_page(workspace)
    for hook in HOOKS:
        yield f"{hook}.md", registration_page(hook, workspace)
    for hook in specs.EVENT_HOOKS:
        yield f"{hook}.md", event_page(hook, workspace)
    yield "types.md", types_page()
    yield "arrays.md", arrays_page()


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
        "- [Types of the contract](types.md): what builders get, return and exchange.\n"
        "- [Array functions](arrays.md): what losses are written with.\n"
        "- [Recipe reference](../recipe.md): every setting, and the options of every first-party entry.\n"
        "- [Write a plugin](../guides/write-a-plugin.md), [a plugin of each kind](../guides/plugins-by-kind.md) and"
        " [customise a run from CI](../guides/customise-from-ci.md)."
    )
    return page(lines)


def registration_page(hook: str, workspace: Workspace) -> str:
    """A hook that yields entries: signature, example, entry type, what the builder returns, who implements it."""
    cls = HOOKS[hook]
    doc = hook_doc(hook)
    lines = [f"# {hook}", WRITTEN, doc.text, python(f"@hookspec\ndef {hook_signature(hook)}"), *example(doc)]
    guides = workspace.guides(hook)
    lines.append(f"Written whole in {', '.join(f'[{title}](../{path})' for title, path in guides)}." if guides else "")
    entry = read_class(cls)
    lines += [f"## The entry `{cls.__name__}`", entry.doc.text]
    lines.append("\n".join(entry_table(entry)))
    lines += type_links(" ".join(attribute.type for attribute in entry.attributes))
    lines += builder_lines(cls)
    lines.append("## First-party entries")
    offers = workspace.of_kind(cls.kind)
    if not offers:
        lines.append("There is none yet.")
    for offer in offers:
        lines += offer_lines(offer, "###")
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


def example(doc: Docstring) -> list[str]:
    """The example of a docstring, as a block of code."""
    return [python(doc.code["Example"])] if "Example" in doc.code else []


def entry_table(entry: ClassDoc) -> list[str]:
    """Attributes of an entry type, those of every entry first."""
    attributes = [*read_class(Entry).attributes, *entry.attributes]
    rows = [(a.name, f"`{a.type}`", _default(a), a.meaning) for a in attributes]
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
    context = "CommandContext" if cls.kind == "face" else "Context"
    lines.append(
        f"`build(options: MyOptions, context: {context}) -> {built.__name__}`, where `MyOptions` is a subclass of"
        f" {link('Options')} and the {link(context)} reaches the rest of the run. `{built.__name__}` is the protocol"
        f" `{module}.{built.__name__}`:"
    )
    return [*lines, described.doc.text, *attribute_lines(described), *method_lines(described)]


def offer_lines(offer: Offer, heading: str, *, up: str = "../..") -> list[str]:
    """One first-party entry with its options; `up` is the way from the page to the root."""
    entry = offer.entry
    marks = ["the default"] if entry.default else []
    if entry.kind == "command":
        summary = f"`ft {entry.name}`: {entry.summary}."
        options_lines: list[str] = []
    else:
        summary = f"{entry.summary[:1].upper()}{entry.summary[1:]}." if entry.summary else ""
        options_lines = ["\n".join(options_table(entry))]
    source = f"From [{offer.distribution}]({up}/{offer.folder})" + (f"; {marks[0]}" if marks else "") + "."
    return [f"{heading} {entry.name}", f"{summary} {source}".strip(), *options_lines]


# --- types ------------------------------------------------------------------------------------------------------------


def types_page() -> str:
    """Every public class of the contract that is no entry and no protocol of a builder."""
    lines = ["# Types of the contract", WRITTEN]
    lines.append(
        "Import them from `finetooth_hooks`; of the few whose name means something else there it is said from where."
    )
    lines += decorator_lines()
    for module in TYPE_MODULES:
        lines += [f"## {module.__name__}", parse(module.__doc__).text]
        constants = read_constants(module)
        if constants:
            rows = [(a.name, _shown(a.type), f"{a.meaning} {_from(module, a.name)}".strip()) for a in constants]
            lines.append("\n".join(table(("name", "is", "meaning"), rows)))
        for cls in _classes(module):
            described = read_class(cls)
            lines += [f"### {cls.__name__}", described.doc.text, _from(module, cls.__name__)]
            lines += attribute_lines(described, linked=False) + method_lines(described, linked=False)
    return page([*lines, *capability_lines()])


def decorator_lines() -> list[str]:
    """What the package has beside types: its version and its decorators."""
    version = read_constants(finetooth_hooks)
    rows = [(a.name, _shown(a.type), a.meaning) for a in version]
    for name in finetooth_hooks.__all__:
        value = getattr(finetooth_hooks, name)
        if inspect.isfunction(value):
            rows.append((name, f"`{name}{_arguments(value)}`", parse(value.__doc__).summary))
    return ["## finetooth_hooks", "\n".join(table(("name", "is", "meaning"), rows))]


def _arguments(function: Any) -> str:
    """Names and defaults of a function's arguments."""
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([one.replace(annotation=inspect.Parameter.empty) for one in parameters]))


def _shown(value: str) -> str:
    """What a name is set to; a long table is not repeated."""
    return f"`{value}`" if len(value) <= 240 else ""


def _from(module: ModuleType, name: str) -> str:
    """Where to import a name from, if the top of the package has another thing under it."""
    same = getattr(finetooth_hooks, name, None) is getattr(module, name)
    return "" if same else f"Import it from `{module.__name__}`."


def capability_lines() -> list[str]:
    """The words of `capabilities`, kind by kind."""
    words = capabilities.CAPABILITIES
    rows = [(kind, f"`{word}`", promise) for kind, of in words.items() for word, promise in of.items()]
    doc = parse(capabilities.__doc__).text
    return [f"## {capabilities.__name__}", doc, "\n".join(table(("kind", "word", "promises"), rows))]


def arrays_page() -> str:
    """The functions that losses are written with."""
    doc = parse(arrays.__doc__)
    rows = [(f.signature, f.doc.summary) for f in read_functions(arrays) if f.name not in ("register", "library")]
    return page(["# Array functions", WRITTEN, doc.text, "\n".join(table(("function", "gives"), rows))])


def type_classes() -> Mapping[str, type[Any]]:
    """Classes on the page of types, by name."""
    return {cls.__name__: cls for module in TYPE_MODULES for cls in _classes(module)}


def _classes(module: ModuleType) -> list[type[Any]]:
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
    rows = [(a.name, f"`{a.type}`", _default(a), a.meaning) for a in described.attributes]
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
    return f"[`{name}`](types.md#{name.lower()})"


# --- form -------------------------------------------------------------------------------------------------------------


def _default(attribute: Attribute) -> str:
    return f"`{attribute.default}`" if attribute.default is not None else "-"


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of ready-made cells."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(cell(text) for text in row)} |" for row in rows]


def python(code: str) -> str:
    """A block of Python."""
    return f"```python\n{code}\n```"


def page(blocks: list[str]) -> str:
    """Blocks with an empty line between them."""
    return "\n\n".join(block for block in blocks if block) + "\n"
