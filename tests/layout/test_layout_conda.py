"""The conda recipe asks for what the packages that it builds ask for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "tools" / "conda" / "meta.yaml"
CONDA = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}
"""What conda calls otherwise."""


def wanted() -> dict[str, set[str]]:
    """Bounds of every requirement that is no package of ours, of all that `pip install finetooth` brings."""
    projects = {}
    for path in ROOT.glob("**/pyproject.toml"):
        if not {".venv", "node_modules"} & set(path.parts):
            project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
            projects[project.get("name")] = project
    found: dict[str, set[str]] = {}
    meta = projects["finetooth"]
    brought = [*meta["dependencies"], *meta["optional-dependencies"]["torch"]]
    ours = list(dict.fromkeys(re.split(r"[=<>\[]", one)[0] for one in brought))
    for name in ours:
        waiting = list(projects[name].get("dependencies", ()))
        for requirement in waiting:
            match = re.match(r"([\w.-]+)(?:\[.*?\])?\s*([^;]*)", requirement)
            assert match is not None
            if match[1] not in projects:
                bounds = {part.strip() for part in match[2].split(",") if part.strip()}
                found.setdefault(CONDA.get(match[1], match[1]), set()).update(bounds)
            elif match[1] != "finetooth":
                ours += [match[1]] if match[1] not in ours else []  # what a package of ours brings, it brings too
                if extra := re.search(r"\[(.*?)\]", requirement):
                    waiting += projects[match[1]]["optional-dependencies"][extra[1]]
    return found


def test_it_asks_for_what_the_packages_need() -> None:
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    asked = {}
    for line in recipe["requirements"]["run"]:
        name, _, bounds = line.partition(" ")
        asked[name] = {part for part in bounds.split(",") if part}
    assert asked.pop("python") == {">=3.11"}
    assert asked == wanted()


def test_what_a_package_of_ours_stands_on_is_built_too() -> None:
    listed = subprocess.run([sys.executable, RECIPE.parent / "packages.py"], capture_output=True, text=True, check=True)
    files = [ROOT / folder / "pyproject.toml" for folder in listed.stdout.split()]
    projects = [tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files]
    names = {project["name"] for project in projects}
    needed = {Requirement(line).name for project in projects for line in project.get("dependencies", ())}
    assert len(names) > 100
    assert {name for name in needed if name.startswith("finetooth")} <= names


def test_it_builds_the_version_of_the_packages_and_tries_the_command() -> None:
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert recipe["package"] == {"name": "finetooth", "version": project["version"]}
    assert "ft --version" in recipe["test"]["commands"] and recipe["about"]["license"] == "Apache-2.0"
