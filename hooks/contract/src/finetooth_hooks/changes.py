"""Breaking changes of the contract, for authors of plugins, from `changes.toml`.

`docs/hooks/changes.md` shows them. A plugin for an older contract is refused with only those lines that concern its
source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PAGE = "docs/hooks/changes.md"
FIRST = "1.0.0"


@dataclass(frozen=True)
class Change:
    """One breaking change of the contract.

    Attributes:
        number: of the contract with the change.
        about: the affected plugins, in a word or two.
        text: the change and what authors must do; one line, without a full stop.
        marks: names in a plugin's source, any of which shows that it is affected.
        unless: a name that shows that the source is up to date.
    """

    number: str
    about: str
    text: str
    marks: tuple[str, ...]
    unless: str = ""

    def meets(self, source: str) -> bool:
        """Whether a plugin with this source is affected."""
        words = set(re.findall(r"\w+", source))

        def occurs(mark: str) -> bool:
            return mark in words if mark.isidentifier() else mark in source

        return any(map(occurs, self.marks)) and not (self.unless and occurs(self.unless))


def read() -> tuple[Change, ...]:
    """Every breaking change, in the order of its number."""
    import tomllib  # imported only if a plugin is refused

    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return tuple(Change(**{**row, "marks": tuple(row["marks"])}) for row in table["change"])


def numbers() -> tuple[str, ...]:
    """All numbers of the contract."""
    return tuple(dict.fromkeys((FIRST, *(change.number for change in read()))))


def met(sources: Iterable[str], admitted: Iterable[str]) -> str:
    """The changes for a plugin, as a part of a line.

    Args:
        sources: its Python files.
        admitted: the numbers (of `numbers()`) that it supports.

    Returns:
        An empty text if it supports none of them, but only a later contract.
    """
    known = set(admitted)
    if not known:
        return ""
    source = "\n".join(sources)
    texts = [change.text for change in read() if change.number not in known and change.meets(source)]
    return f"for it changed: {'; '.join(texts)}" if texts else "nothing that it uses has changed"


__all__ = ["FIRST", "PAGE", "Change", "met", "numbers", "read"]
