"""Folders of the packages that `pip install finetooth` brings on Apple silicon, which needs no torch: one a line.

    python tools/without_torch.py

Markers are read as pip reads them there, wherever this runs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("hooks/*", "core/*", "kernels/*", "plugins/*/*")
APPLE = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"}
META = "finetooth"


def normal(name: str) -> str:
    """A distribution name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def projects() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folder and table `project` of every package here, by name."""
    folders = [ROOT, *(path.parent for pattern in PATTERNS for path in ROOT.glob(f"{pattern}/pyproject.toml"))]
    read = [(folder, tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))) for folder in folders]
    return {normal(content["project"]["name"]): (folder, content["project"]) for folder, content in read}


def requirements(project: dict[str, Any], extras: Sequence[str] = ()) -> Iterator[Requirement]:
    """What a package asks for on Apple silicon, with these extras."""
    optional = project.get("optional-dependencies", {})
    for text in [*project.get("dependencies", ()), *(text for extra in extras for text in optional[extra])]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({**APPLE, "extra": ""}):
            yield requirement


def brought() -> tuple[dict[str, Path], dict[str, Requirement]]:
    """Our packages with their folders, without the one that has no code, and what they ask for of others, by name."""
    known = projects()
    seen: set[tuple[str, str]] = set()
    ours: dict[str, Path] = {}
    others: dict[str, Requirement] = {}
    waiting = [Requirement(META)]
    while waiting:
        requirement = waiting.pop()
        name, key = normal(requirement.name), ",".join(sorted(requirement.extras))
        if name not in known:
            others[name] = requirement
        elif (name, key) not in seen:
            seen.add((name, key))
            folder, project = known[name]
            ours |= {} if name == META else {name: folder}
            waiting += requirements(project, sorted(requirement.extras))
    return ours, others


if __name__ == "__main__":
    print(*sorted(f"./{folder.relative_to(ROOT)}" for folder in brought()[0].values()), sep="\n")
