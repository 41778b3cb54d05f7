"""The packages of this workspace and what they offer; nothing else that may be installed is looked at."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

from finetooth_core.plugins import registration
from finetooth_hooks import Entry

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = "plugins/*/*/pyproject.toml"
"""First-party plugins; contrib is kept by others and may break."""
EXAMPLES = ("docs/guides/**/*.py",)
"""Local plugin files that the guides show."""


@dataclass(frozen=True)
class Offer:
    """An entry beside the package that brings it; `folder` is relative to the root."""

    entry: Entry
    distribution: str
    folder: str


class Workspace:
    """First-party plugins, read once.

    Args:
        root: of the repository.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    @cached_property
    def offers(self) -> tuple[Offer, ...]:
        """All entries, sorted by package and then as the package yields them.

        Raises:
            SystemExit: a package of the workspace is no valid plugin.
        """
        found: list[Offer] = []
        for file in sorted(self.root.glob(PLUGINS)):
            project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
            sys.path.insert(0, str(file.parent / "src"))  # it stays: builders are imported later
            for module in project.get("entry-points", {}).get("finetooth", {}).values():
                registered = registration.read(import_module(module))
                if registered.problems:
                    raise SystemExit(f"{project['name']}: {registered.problems[0].text}")
                folder = file.parent.relative_to(self.root).as_posix()
                found += [Offer(entry, project["name"], folder) for entry in registered.entries]
        return tuple(found)

    def of_kind(self, kind: str) -> tuple[Offer, ...]:
        """Entries of one kind, sorted by name."""
        return tuple(sorted((o for o in self.offers if o.entry.kind == kind), key=lambda offer: offer.entry.name))

    def implementations(self, hook: str) -> tuple[str, ...]:
        """Files of plugins and guides, relative to the root, that implement a hook."""
        return tuple(name for name, hooks in self._hooks_by_file.items() if hook in hooks)

    def guides(self, hook: str) -> list[tuple[str, str]]:
        """Title and path, relative to docs/, of each guide with a file that implements a hook."""
        found = []
        for page in sorted((self.root / "docs/guides").glob("*.md")):
            text = page.read_text(encoding="utf-8")
            if f"\ndef {hook}(" in text:
                found.append((text.partition("\n")[0].removeprefix("# "), f"guides/{page.name}"))
        return found

    @cached_property
    def _hooks_by_file(self) -> dict[str, frozenset[str]]:
        return {file.relative_to(self.root).as_posix(): frozenset(_hooks(file)) for file in self._files()}

    def _files(self) -> Iterator[Path]:
        for pattern in ("plugins/*/*/src/*/plugin.py", *EXAMPLES):
            yield from sorted(self.root.glob(pattern))


def _hooks(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("ft_"):
            yield node.name
