"""Wheels from outside the tree, installed by pip into a prefix of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest


@dataclass(frozen=True)
class Result:
    """What a command said."""

    code: int
    out: str
    err: str


@dataclass
class Prefix:
    """A folder that pip installs into; what is in it is seen by a fresh process only."""

    folder: Path
    work: Path

    def install(self, distributions: Mapping[str, Mapping[str, str]]) -> None:
        """Build one wheel for each distribution, given as text by path, and install all of them, without an index."""
        wheels = self.work / "wheels"
        for name, files in distributions.items():
            for path, text in files.items():
                file = self.work / name / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(dedent(text).lstrip("\n"))
        _run([sys.executable, "-c", BUILD, str(wheels), *distributions], self.work)
        found = sorted(map(str, wheels.glob("*.whl")))
        assert len(found) == len(distributions)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(self.folder),
        ]
        _run([*pip, "--no-compile", "--disable-pip-version-check", "--no-warn-conflicts", *found], self.work)

    def ft(self, *arguments: str) -> Result:
        """Call `ft` in a fresh process that sees the prefix."""
        return self.fts(arguments)[0]

    def fts(self, *calls: Sequence[str]) -> list[Result]:
        """Call `ft` several times in one fresh process, which imports torch only once."""
        environment = {
            **{name: value for name, value in os.environ.items() if name != "FT_PLUGINS"},
            "PYTHONPATH": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        command = [sys.executable, "-c", CALLS, json.dumps(calls)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.work, check=False)
        assert done.returncode == 0, done.stderr
        results = [Result(**result) for result in json.loads(done.stdout.splitlines()[-1])]
        assert len(results) == len(calls)
        assert not any("Traceback" in result.err for result in results)
        return results


BUILD = """
import os, sys
import hatchling.build
wheels, *folders = map(os.path.abspath, sys.argv[1:])
for folder in folders:
    os.chdir(folder)
    hatchling.build.build_wheel(wheels)
"""
CALLS = """
import contextlib, io, json, sys
from finetooth_core.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(results))
"""


def _run(command: Sequence[str], cwd: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def new_prefix(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prefix]:
    """Make an empty prefix."""

    def make(name: str) -> Prefix:
        folder = tmp_path_factory.mktemp(name)
        (folder / "prefix").mkdir()
        (folder / "work/wheels").mkdir(parents=True)
        return Prefix(folder / "prefix", folder / "work")

    return make


@pytest.fixture(scope="session")
def distribution_files() -> Callable[..., dict[str, str]]:
    """The files of a distribution that brings one plugin."""

    def files(
        distribution: str,
        plugin: str,
        *,
        requires: Sequence[str] = ("finetooth-hooks>=2,<3",),
        modules: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        package = distribution.replace("-", "_")
        project = f"""
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"

            [project]
            name = "{distribution}"
            version = "1.2.3"
            dependencies = {json.dumps(list(requires))}

            [project.entry-points.finetooth]
            {package} = "{package}.plugin"
        """
        sources = {"__init__.py": "", "plugin.py": plugin, **(modules or {})}
        return {"pyproject.toml": project, **{f"src/{package}/{name}": text for name, text in sources.items()}}

    return files
