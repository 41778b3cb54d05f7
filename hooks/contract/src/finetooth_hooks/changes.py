"""What changed for authors of plugins: the breaks of the contract, read from `changes.toml`.

`docs/hooks/changes.md` shows them. A plugin for an older contract is refused with those lines that its own source
meets, so that its author need not read the rest.
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
    """One break of the contract.

    Attributes:
        number: the contract that broke it.
        about: whom it concerns, in a word or two.
        text: what is different, and what an author does now; one line, without a full stop.
        marks: names in a plugin's source that show that it is concerned; any of them.
        unless: a name that shows that the source already follows.
    """

    number: str
    about: str
    text: str
    marks: tuple[str, ...]
    unless: str = ""

    def meets(self, source: str) -> bool:
        """Whether a plugin with this source is concerned."""
        words = set(re.findall(r"\w+", source))

        def occurs(mark: str) -> bool:
            return mark in words if mark.isidentifier() else mark in source

        return any(map(occurs, self.marks)) and not (self.unless and occurs(self.unless))


def read() -> tuple[Change, ...]:
    """Every break, in the order of its number."""
    import tomllib  # here: a start without a refused plugin needs none of it

    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return tuple(Change(**{**row, "marks": tuple(row["marks"])}) for row in table["change"])


def numbers() -> tuple[str, ...]:
    """Every number that the contract has had."""
    return tuple(dict.fromkeys((FIRST, *(change.number for change in read()))))


def met(sources: Iterable[str], admitted: Iterable[str]) -> str:
    """What changed for a plugin, in a part of a line.

    Args:
        sources: its Python files.
        admitted: which of `numbers()` it says it is made for.

    Returns:
        An empty text if it is made for none of them, so for a later contract than this one.
    """
    known = set(admitted)
    if not known:
        return ""
    source = "\n".join(sources)
    texts = [change.text for change in read() if change.number not in known and change.meets(source)]
    return f"for it changed: {'; '.join(texts)}" if texts else "nothing that it uses has changed"


__all__ = ["FIRST", "PAGE", "Change", "met", "numbers", "read"]
