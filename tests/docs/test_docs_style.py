"""Docstrings, texts and comments of the code, pages and templates are plain English: docs/style.md."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = re.compile(
    r"\b(told of|beside|what asks|go(?:es)? on|(?:is|are) no(?! longer\b| more\b| less\b)|bec(?:omes?|ame) of"
    r"|lets? go of|whoever)\b",
    re.IGNORECASE,
)
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
QUOTED = "If there is no function call available"  # the official template of Qwen3-Coder says so


def rooms() -> list[str]:
    """Every package's folder from the root."""
    return sorted(file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("*/**/pyproject.toml") if (
        (file.parent / "src").is_dir() and ".venv" not in file.as_posix()
    ))  # fmt: skip


def pages() -> list[str]:
    """Pages that people write, and templates, from the root. docs/style.md quotes the phrases."""
    written = [*ROOT.glob("*.md"), *ROOT.glob("docs/guides/*.md"), *ROOT.glob("docs/decisions/*.md")]
    return sorted(file.relative_to(ROOT).as_posix() for file in [*written, *ROOT.glob("*/*/*/src/**/*.tmpl")])


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every comment, every docstring and every other text in a module, spaces as one."""
    if PHRASES.search(source):
        for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


def documented(source: str) -> Iterator[tuple[str, str]]:
    """Name and docstring of everything public in a module."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = getattr(node, "name", "the module")
            text = ast.get_docstring(node)
            if text and not name.startswith("_"):
                yield name, text


def broken(room: str) -> list[str]:
    """Places that break the rule, each as `file:line: phrase`."""
    places = []
    for file in sorted((ROOT / room / "src").rglob("*.py")):
        source, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
        places += [
            f"{name}:{line}: {match[0]!r}"
            for line, text in texts(source)
            for match in PHRASES.finditer(text.replace(QUOTED, ""))
        ]
        for owner, text in documented(source):
            first = " ".join(text.split("\n\n")[0].split())
            if SECTION.match(first) or not first.rstrip("`\"')").endswith((".", ":", "?")):
                places.append(f"{name}: {owner}: the docstring does not begin with a sentence")
    return places


@pytest.mark.parametrize("room", rooms())
def test_room_is_plain_english(room: str) -> None:
    places = broken(room)
    assert places == [], "see docs/style.md"


@pytest.mark.parametrize("name", pages())
def test_page_is_plain_english(name: str) -> None:
    text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
    assert PHRASES.findall(text) == [], "see docs/style.md"


def test_style_page_is_short() -> None:
    assert (ROOT / "docs/style.md").read_text(encoding="utf-8").count("\n") <= 80
