"""Folders of the packages that `pip install finetooth` brings and those that they stand on, the root last."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("hooks", "core", "kernels", "plugins")


def folders() -> list[str]:
    """Relative to the root."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).glob("**/pyproject.toml"))]
    projects = {}
    for path in [ROOT / "pyproject.toml", *(file for file in files if ".venv" not in file.parts)]:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        projects[project["name"]] = (path.parent, project)
    root = projects["finetooth"][1]
    waiting = [*root["dependencies"], *root["optional-dependencies"]["torch"]]
    found: dict[str, str] = {}
    for requirement in waiting:
        name = re.split(r"[=<>\[]", requirement)[0].strip()
        if name in projects and name != "finetooth" and name not in found:
            folder, project = projects[name]
            found[name] = f"./{folder.relative_to(ROOT)}"
            waiting += project.get("dependencies", ())
    return [*found.values(), "."]


if __name__ == "__main__":
    print(*folders())
