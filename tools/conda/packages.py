"""Folders of the packages that `pip install finetooth` brings, the root last; see meta.yaml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def folders() -> list[str]:
    """Relative to the root; those that meta.yaml names itself are left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["torch"]]
    names = {re.split(r"[=<>\[]", one)[0] for one in wanted}
    found = []
    for path in sorted((ROOT / "plugins").glob("*/*/pyproject.toml")):
        if tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"] in names:
            found.append(f"./{path.parent.relative_to(ROOT)}")
    return [*found, "."]


if __name__ == "__main__":
    print(*folders())
