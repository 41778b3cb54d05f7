"""What a part of `make gpu` found, as a section of its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

APART = 0.05
"""How far a kernel may be from plain operations in half precision."""


@dataclass
class Proof:
    """What one part found.

    Attributes:
        title: of its section.
        rows: a table, its head first.
        notes: sentences below it.
        failed: what is not as it must be.
    """

    title: str
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @staticmethod
    def read(file: Path) -> Proof:
        """As `save` wrote it."""
        said = json.loads(file.read_text(encoding="utf-8"))
        return Proof(said["title"], [tuple(row) for row in said["rows"]], said["notes"], said["failed"])

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        written = file.with_suffix(".new")
        written.write_text(json.dumps(vars(self), indent=1), encoding="utf-8")
        written.replace(file)

    def lines(self) -> Iterator[str]:
        """The section in Markdown."""
        yield from (f"## {self.title}", "")
        for at, row in enumerate(self.rows):
            yield f"| {' | '.join(row)} |"
            if not at:
                yield f"|{'---|' * len(row)}"
        for note in self.notes:
            yield from ("", *wrap(note, 118))
        yield from ("", *(f"**Failed**: {line}" for line in self.failed), "")


def table(
    title: str, named: tuple[str, ...], rows: Iterable[dict[str, Any]], keep: Callable[[Proof], None]
) -> Proof:  # fmt: skip
    """Milliseconds, memory and differences of every contender; a difference over roundings fails.

    Args:
        keep: called after each row.
    """
    proof = Proof(title, [(*named, "who", "ms", "MB", "largest difference")])
    for row in rows:
        about = tuple(str(row[name]) for name in named)
        if "not measured" in row:
            proof.notes.append(f"{', '.join(about)}: {row['not measured']}.")
        for who, at in row.get("contenders", {}).items():
            figures = (str(at.get(name, "-")) for name in ("ms", "peak_mb", "largest_difference"))
            proof.rows.append((*about, who, *figures))
            if "not measured" in at:
                proof.failed.append(f"{', '.join(about)}, {who}: {at['not measured']}")
            elif at.get("largest_difference", 0.0) > APART:
                proof.failed.append(f"{', '.join(about)}, {who}: {at['largest_difference']} apart")
        keep(proof)
    return proof
