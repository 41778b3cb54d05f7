"""Write the reference: docs/hooks/ from the hookspecs and the libraries that plugins import, docs/hooks/types/ from the
contract's classes, and docs/recipe/ from the options models.

    python tools/make_reference.py [--check]

`--check` changes nothing and fails if a page is not up to date. Only the packages of this workspace are shown,
whatever else is installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reference.library_pages import library_pages
from reference.pages import hook_pages
from reference.recipe_pages import recipe_pages
from reference.type_pages import type_pages
from reference.workspace import ROOT, Workspace

HOOKS = Path("docs/hooks")
TYPES = HOOKS / "types"
RECIPE = Path("docs/recipe")
FOLDERS = (HOOKS, TYPES, RECIPE)
"""Folders that hold nothing but what this script writes."""


def pages() -> dict[Path, str]:
    """Every page by its path from the root."""
    workspace = Workspace()
    found = {HOOKS / name: text for name, text in hook_pages(workspace)}
    found |= {HOOKS / name: text for name, text in library_pages()}
    found |= {TYPES / name: text for name, text in type_pages()}
    found |= {RECIPE / name: text for name, text in recipe_pages(workspace)}
    return found


def stale(wanted: dict[Path, str]) -> list[str]:
    """What is not as it should be: pages that differ or are missing, and pages that nothing asks for."""
    problems = []
    for path, text in wanted.items():
        file = ROOT / path
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            problems.append(path.as_posix())
    return problems + sorted(f"{path.as_posix()} (left over)" for path in written() - set(wanted))


def written() -> set[Path]:
    """The pages that are there."""
    return {file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).glob("*.md")}


def main() -> int:
    """Write or check the pages; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    wanted = pages()
    problems = stale(wanted)
    if arguments.check:
        for problem in problems:
            print(f"{problem} is not up to date: run make docs", file=sys.stderr)
        return 1 if problems else 0
    for path in written() - set(wanted):
        (ROOT / path).unlink()
    for path, text in wanted.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
