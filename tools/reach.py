"""Say which folders a change can reach, so that their slow tests run whole: nearest first, separated by commas.

    python tools/reach.py [BASE]

BASE is a commit. Left out, it is the last one that passed `.ci/run` here, else where this branch left `origin/HEAD`. A
package is reached if a file of it changed, or if it depends on one that is reached. Of `tests/`, files that changed are
reached. Nothing is printed where there is no such history, or where more than half of the packages are reached: then a
share of all tests says more.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PASSED = "refs/finetooth/passed"
"""The commit that last passed `.ci/run` in this clone."""


@dataclass(frozen=True)
class Package:
    """A package of the workspace.

    Attributes:
        folder: from the root.
        needs: names of the distributions that it depends on.
    """

    folder: str
    needs: frozenset[str]


def packages(root: Path = ROOT) -> dict[str, Package]:
    """All packages of the workspace by the name of their distribution."""
    result = {}
    for room in ("hooks/*", "core/*", "kernels/*", "plugins/*/*", "contrib/*"):
        for file in sorted(root.glob(f"{room}/pyproject.toml")):
            project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
            needs = frozenset(re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in project.get("dependencies", ()))
            result[project["name"]] = Package(file.parent.relative_to(root).as_posix(), needs)
    return result


def reached(changed: Iterable[str], known: Mapping[str, Package]) -> list[str]:
    """Folders of packages and files of `tests/` that a change can reach, nearest first.

    Args:
        changed: files, from the root.
        known: packages by name.

    Returns:
        None of them if more than half of the packages are reached.
    """
    files = sorted(changed)
    nearest = [name for name, package in known.items() if any(f.startswith(f"{package.folder}/") for f in files)]
    names = list(nearest)
    while nearest:
        nearest = [name for name, package in known.items() if name not in names and package.needs & {*nearest}]
        names += nearest
    if 2 * len(names) > len(known):
        return []
    tests = [f for f in files if f.startswith("tests/") and Path(f).name.startswith("test_")]
    return [*tests, *(f"{known[name].folder}/" for name in names)]


def _git(*command: str) -> str:
    """What git prints; nothing if it fails."""
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    """Print the folders."""
    base = sys.argv[1] if len(sys.argv) > 1 else _git("rev-parse", "--verify", "--quiet", PASSED)
    base = base or _git("merge-base", "HEAD", "origin/HEAD")
    changed = _git("diff", "--name-only", base, "HEAD") if base else ""
    print(",".join(reached(changed.splitlines(), packages())))


if __name__ == "__main__":
    main()
