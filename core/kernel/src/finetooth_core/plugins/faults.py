"""Faults of plugins, with distribution, file and remedy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """One fault of a plugin, which is therefore left out.

    Attributes:
        distribution: its distribution name, or the local file or module as the user named it.
        version: of the distribution; empty for a local file.
        file: place of the fault, `path/plugin.py:12` if known.
        problem: what is wrong.
        action: what to do next.
        offers: its entries, `loss:dpo`, as far as known.
    """

    distribution: str
    version: str
    file: str
    problem: str
    action: str = ""
    offers: tuple[str, ...] = field(default=())

    @property
    def label(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".rstrip()

    def line(self) -> str:
        """The whole fault in one line."""
        where = f" [{self.file}]" if self.file else ""
        action = f" ({self.action})" if self.action else ""
        return f"{self.label}: {self.problem}{where}{action}"
