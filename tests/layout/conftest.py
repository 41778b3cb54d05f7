"""The packages of the workspace, as its folders say."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("hooks/*", "core/*", "kernels/*", "plugins/*/*", "contrib/*")


@dataclass(frozen=True)
class Package:
    """One distribution: its folder and its pyproject.toml."""

    folder: Path
    project: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def place(self) -> str:
        return self.folder.relative_to(ROOT).as_posix()

    @property
    def is_plugin(self) -> bool:
        return self.place.startswith(("plugins/", "contrib/")) and not self.place.startswith("plugins/shared/")

    @property
    def modules(self) -> list[Path]:
        """Its import packages."""
        return sorted(path.parent for path in self.folder.glob("src/*/__init__.py"))

    @property
    def sources(self) -> list[Path]:
        return sorted(self.folder.glob("src/**/*.py"))


def packages() -> list[Package]:
    """Every package, whatever state it is in: a folder without a pyproject.toml fails here."""
    folders = sorted(f for room in ROOMS for f in ROOT.glob(room) if f.is_dir() and not f.name.startswith((".", "_")))
    return [Package(f, tomllib.loads((f / "pyproject.toml").read_text(encoding="utf-8"))["project"]) for f in folders]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`package` is each package in turn, `plugin` each plugin."""
    for name, wanted in (("package", packages()), ("plugin", [p for p in packages() if p.is_plugin])):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, wanted, ids=[package.place for package in wanted])


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def workspace() -> list[Package]:
    return packages()
