"""Docstrings in the form this project writes them: a text, then sections such as `Attributes:` and `Example:`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

SECTIONS = ("Args", "Attributes", "Example", "Raises", "Returns")
_HEADING = re.compile(rf"({'|'.join(SECTIONS)}):\s*\Z")
_ITEM = re.compile(r"([\w*]+(?:, [\w*]+)*): ?(.*)")


@dataclass(frozen=True)
class Docstring:
    """A docstring, taken apart.

    Attributes:
        text: paragraphs before the first section, each in one line.
        items: meaning by name, for the sections that list names (`Args`, `Attributes`, `Raises`).
        code: the sections that hold code or free text (`Example`, `Returns`), dedented.
    """

    text: str = ""
    items: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first paragraph."""
        return self.text.split("\n\n")[0]

    def meanings(self, section: str) -> Mapping[str, str]:
        """The items of one section."""
        return self.items.get(section, {})


def parse(docstring: str | None) -> Docstring:
    """Take a docstring apart."""
    head: list[str] = []
    blocks: dict[str, list[str]] = {}
    current = head
    for line in inspect.cleandoc(docstring or "").splitlines():
        heading = _HEADING.match(line)
        if heading:
            current = blocks.setdefault(heading[1], [])
        elif current is not head and line and not line.startswith(" "):
            current = head  # the text goes on after a section
            current.extend(["", line])
        else:
            current.append(line)
    bodies = {name: textwrap.dedent("\n".join(lines)).strip("\n") for name, lines in blocks.items()}
    listed = {name: _items(body) for name, body in bodies.items() if name in ("Args", "Attributes", "Raises")}
    code = {name: body for name, body in bodies.items() if name not in listed}
    return Docstring(paragraphs("\n".join(head)), listed, code)


def paragraphs(text: str) -> str:
    """Every paragraph in one line; an indented block stays as it is."""
    parts = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        parts.append(part if part.startswith("    ") else " ".join(part.split()))
    return "\n\n".join(part for part in parts if part)


def _items(body: str) -> dict[str, str]:
    """`name: meaning`, continued on indented lines; `a, b: meaning` holds for both."""
    found: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        item = None if line.startswith(" ") else _ITEM.match(line)
        if item:
            found.append((item[1], [item[2]]))
        elif found:
            found[-1][1].append(line)
    return {name: " ".join(" ".join(lines).split()) for names, lines in found for name in names.split(", ")}
