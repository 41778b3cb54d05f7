"""A site of its own: a folder on `sys.path` into which tests install made-up distributions."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import pytest

COUNTER = itertools.count()


@dataclass
class Site:
    """Installs distributions as pip would, without pip."""

    folder: Path
    modules: list[str] = field(default_factory=list)

    def add(
        self,
        distribution: str,
        plugin: str = "",
        *,
        version: str = "1.0",
        requires: Sequence[str] = ("finetooth-hooks>=2,<3",),
        files: Mapping[str, str] | None = None,
        entry_points: str | None = None,
    ) -> str:
        """Install one distribution; its package gets a fresh name, `PACKAGE` in sources stands for it.

        Returns:
            The name of its plugin module.
        """
        package = f"acme_{next(COUNTER)}"
        self.modules.append(package)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.4", f"Name: {distribution}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n\nRequires-Dist: not-a-header\n")
        if entry_points is None:
            entry_points = f"[console_scripts]\nx = y:z\n\n[finetooth]\nanything = {package}.plugin\n"
        (info / "entry_points.txt").write_text(entry_points.replace("PACKAGE", package))
        sources = {"__init__.py": "", "plugin.py": plugin, **(files or {})}
        for name, source in sources.items():
            path = self.folder / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(source).replace("PACKAGE", package))
        return f"{package}.plugin"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    made.folder.mkdir()
    monkeypatch.syspath_prepend(str(made.folder))
    yield made
    for name in list(sys.modules):
        if name.partition(".")[0] in made.modules or name.startswith("finetooth_local_"):
            del sys.modules[name]


@pytest.fixture
def loss_plugin() -> Callable[[str], str]:
    """Source of a sound plugin with one loss."""

    def source(name: str = "wedge", more: str = "") -> str:
        return (
            "from finetooth_hooks import Loss, Reward, hookimpl, hookspec\n\n"
            "@hookimpl\n"
            "def ft_losses():\n"
            f"    yield Loss(name={name!r}, build='PACKAGE.loss:build', summary='wedge', {more})\n"
        )

    return source
