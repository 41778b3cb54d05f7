"""Every type that the reference names can be imported as it says, and every public name of the contract is in it."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import finetooth_hooks
from finetooth_hooks import Entry

ELSEWHERE = {
    "array_libraries": "how a library joins; its functions are on the page of arrays",
    "arrays": "has a page of its own",
    "changes": "what the page of changes is made of",
    "protocols": "gathers what is written down in other modules",
    "specs": "the hooks, each with a page",
}
"""Modules whose classes are on no page, and why."""
INTERNAL = {
    "FunctionFormat": "what `row_format` makes of a function",
    "Implementation": "what the core reads of a decorated function",
}
PYTHON = {
    *("AbstractAsyncContextManager", "AbstractContextManager", "Any", "AsyncGenerator", "Awaitable", "Callable"),
    *("Collection", "False", "Iterable", "Iterator", "Literal", "Mapping", "MappingProxyType", "MutableMapping"),
    *("NDArray", "None", "Path", "Sequence", "True"),
}
"""Names in signatures that are not the contract's."""


def documented(root: Path) -> Iterator[tuple[str, str, str]]:
    """Module, name and what stands under it, of every heading and every row of names on the pages of types."""
    index = (root / "docs/hooks/types/README.md").read_text(encoding="utf-8")
    own = re.split(r"^## (.+)$", index, flags=re.M)[2]
    yield from (("finetooth_hooks", name, rest) for name, rest in re.findall(r"^\| `(\w+)` \| (.*)$", own, re.M))
    for page in sorted((root / "docs/hooks/types").glob("*.md")):
        title, _, text = page.read_text(encoding="utf-8").partition("\n")
        module = title.removeprefix("# ")
        if page.name == "README.md" or module == "finetooth_hooks.capabilities":  # its words are texts
            continue
        head, *classes = re.split(r"^## (.+)$", text, flags=re.M)
        yield from ((module, name, rest) for name, rest in re.findall(r"^\| `(\w+)` \| (.*)$", head, re.M))
        yield from ((module, name, rest) for name, rest in zip(classes[::2], classes[1::2], strict=True))


def on_pages(root: Path) -> set[str]:
    """Names that a page says what they are: types, entries, and what builders return."""
    found = {name for _, name, _ in documented(root)}
    for page in (root / "docs/hooks").glob("ft_*.md"):
        text = page.read_text(encoding="utf-8")
        found |= set(re.findall(r"^## The entry `(\w+)`$", text, re.M))
        found |= set(re.findall(r"is the protocol `finetooth_hooks\.[\w.]+\.(\w+)`", text))
    return found


def test_every_type_is_imported_as_its_page_says(root: Path) -> None:
    wrong = []
    for module, name, text in documented(root):
        there = getattr(import_module(module), name)
        at_the_top = getattr(finetooth_hooks, name, None) is there
        if at_the_top == (f"Import it from `{module}`" in text):
            wrong.append(f"{module}.{name}")
    assert not wrong


def test_every_public_name_is_on_a_page(root: Path) -> None:
    decorators = {"hookimpl", "hookspec"}  # pluggy's; the page of each hook shows them
    assert set(finetooth_hooks.__all__) - on_pages(root) - decorators == set()


def test_every_class_of_the_contract_is_on_a_page(root: Path) -> None:
    packages = pkgutil.walk_packages(finetooth_hooks.__path__, "finetooth_hooks.")
    modules = {module.name.rpartition(".")[2]: module.name for module in packages}
    assert set(ELSEWHERE) <= set(modules)
    known, missing = on_pages(root), []
    for name in set(modules) - set(ELSEWHERE):
        module = import_module(modules[name])
        own = [value for value in vars(module).values() if inspect.isclass(value)]
        own = [value for value in own if value.__module__ == module.__name__ and not value.__name__.startswith("_")]
        missing += [value.__name__ for value in own if value.__name__ not in known | set(INTERNAL)]
    assert not missing


def test_every_type_in_a_signature_is_on_a_page(root: Path) -> None:
    """Of attributes, methods and hooks: a reader finds whatever stands there."""
    known = on_pages(root) | PYTHON
    for page in (root / "docs/hooks").rglob("*.md"):
        text = page.read_text(encoding="utf-8").split("## First-party entries")[0]
        signatures = re.findall(r"^- `([^`]+)`", text, re.M) + re.findall(r"^\| `\w+` \| `([^`]+)` \|", text, re.M)
        named = {name for signature in signatures for name in re.findall(r"(?<![\w.'])[A-Z][a-z]\w+", signature)}
        assert named - known == set(), page.name


def test_entries_stay_entries(root: Path) -> None:
    """Where an entry and what its builder returns share a name, the top of the package has the entry."""
    for cls in finetooth_hooks.ENTRY_TYPES.values():
        assert issubclass(cls, Entry)
        assert getattr(finetooth_hooks, cls.__name__) is cls


def test_errors_say_how_they_are_made(root: Path) -> None:
    page = (root / "docs/hooks/types/errors.md").read_text(encoding="utf-8")
    for name, error in vars(finetooth_hooks.errors).items():
        if inspect.isclass(error) and issubclass(error, Exception):
            arguments = ", ".join(list(inspect.signature(error).parameters)[:1])
            assert f"- `{name}({arguments}: str" in page
