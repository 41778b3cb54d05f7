"""The pages of docs/hooks/types: one for each module of the contract, and which page has what."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import finetooth_hooks
from finetooth_hooks import capabilities

from reference.classes import read_class, read_constants
from reference.docstrings import parse
from reference.layout import WRITTEN, page, plain_table
from reference.members import TYPE_MODULES, attribute_lines, method_lines, page_of, public_classes
from reference.options import table


def type_pages() -> Iterator[tuple[str, str]]:
    """Name and text of every page, the index first."""
    yield "README.md", index_page()
    for module in _with_classes():
        yield page_of(module.__name__), module_page(module)
    yield page_of(capabilities.__name__), capabilities_page()


def index_page() -> str:
    """Which page has which classes."""
    lines = ["# Types of the contract", WRITTEN]
    lines.append(
        "What builders get, return and exchange. Import them from `finetooth_hooks`; of the few whose name means "
        "something else there it is said from where."
    )
    lines += decorator_lines()
    rows = []
    for module in (*_with_classes(), capabilities):
        name = module.__name__.rpartition(".")[2]
        link = f"[{name}]({page_of(module.__name__)})"
        classes = ", ".join(f"`{cls.__name__}`" for cls in public_classes(module)) or "words of `capabilities`"
        rows.append((link, parse(module.__doc__).summary, classes))
    return page([*lines, "\n".join(plain_table(("page", "about", "classes"), rows))])


def _with_classes() -> list[ModuleType]:
    """Modules of the contract that hold more than what hooks' pages show."""
    return [module for module in TYPE_MODULES if public_classes(module)]


def module_page(module: ModuleType) -> str:
    """Every public class of a module that is no entry and no protocol of a builder."""
    lines = [f"# {module.__name__}", WRITTEN, parse(module.__doc__).text]
    constants = read_constants(module)
    if constants:
        rows = [(a.name, _shown(a.type), f"{a.meaning} {_from(module, a.name)}".strip()) for a in constants]
        lines.append("\n".join(table(("name", "is", "meaning"), rows)))
    for cls in public_classes(module):
        described = read_class(cls)
        lines += [f"## {cls.__name__}", described.doc.text, _from(module, cls.__name__)]
        lines += attribute_lines(described, linked=False) + method_lines(described, linked=False)
    return page(lines)


def decorator_lines() -> list[str]:
    """What the package has beside types: its version and its decorators."""
    version = read_constants(finetooth_hooks)
    rows = [(a.name, _shown(a.type), a.meaning) for a in version]
    for name in finetooth_hooks.__all__:
        value = getattr(finetooth_hooks, name)
        if inspect.isfunction(value):
            rows.append((name, f"`{name}{_arguments(value)}`", parse(value.__doc__).summary))
    return ["## finetooth_hooks", "\n".join(table(("name", "is", "meaning"), rows)), "## Pages"]


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


def capabilities_page() -> str:
    """The words of `capabilities`, kind by kind."""
    words = capabilities.CAPABILITIES
    rows = [(kind, f"`{word}`", promise) for kind, of in words.items() for word, promise in of.items()]
    doc = parse(capabilities.__doc__).text
    return page([f"# {capabilities.__name__}", WRITTEN, doc, "\n".join(table(("kind", "word", "promises"), rows))])
