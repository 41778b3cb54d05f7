"""Write the reference: docs/hooks/*.md from the hookspecs, docs/recipe.md from the options models, and the table of
plugins in README.md.

    python tools/make_reference.py [--check]

`--check` changes nothing and fails if a page is not up to date. Only the packages of this workspace are shown,
whatever else is installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reference.pages import hook_pages
from reference.plugin_table import with_table
from reference.recipe_page import recipe_page
from reference.workspace import ROOT, Workspace

HOOKS = Path("docs/hooks")
RECIPE = Path("docs/recipe.md")
README = Path("README.md")


def pages() -> dict[Path, str]:
    """Every page by its path from the root."""
    workspace = Workspace()
    found = {HOOKS / name: text for name, text in hook_pages(workspace)}
    found[RECIPE] = recipe_page(workspace)
    found[README] = with_table((ROOT / README).read_text(encoding="utf-8"), workspace)
    return found


def stale(wanted: dict[Path, str]) -> list[str]:
    """What is not as it should be: pages that differ or are missing, and pages that nothing asks for."""
    problems = []
    for path, text in wanted.items():
        file = ROOT / path
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            problems.append(path.as_posix())
    leftovers = {file.relative_to(ROOT) for file in (ROOT / HOOKS).glob("*.md")} - set(wanted)
    return problems + sorted(f"{path.as_posix()} (left over)" for path in leftovers)


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
    for file in (ROOT / HOOKS).glob("*.md"):
        if file.relative_to(ROOT) not in wanted:
            file.unlink()
    for path, text in wanted.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
