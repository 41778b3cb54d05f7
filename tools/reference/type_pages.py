"""The pages of docs/hooks/types: one for each module of the contract, and which page has what."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

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
        "What builders get, return and exchange. Import from `finetooth_hooks`, or from the module of the page."
    )
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
        rows = [(a.name, f"`{a.type}`", a.meaning) for a in constants]
        lines.append("\n".join(table(("name", "is", "meaning"), rows)))
    for cls in public_classes(module):
        described = read_class(cls)
        lines += [f"## {cls.__name__}", described.doc.text]
        lines += attribute_lines(described, linked=False) + method_lines(described, linked=False)
    return page(lines)


def capabilities_page() -> str:
    """The words of `capabilities`, kind by kind."""
    words = capabilities.CAPABILITIES
    rows = [(kind, f"`{word}`", promise) for kind, of in words.items() for word, promise in of.items()]
    doc = parse(capabilities.__doc__).text
    return page([f"# {capabilities.__name__}", WRITTEN, doc, "\n".join(table(("kind", "word", "promises"), rows))])
