"""What the documentation is tested with: a shell in which `ft` is small and `pip` is safe."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[2]

FT = """
    #!{python} -IS
    # What a page says, on a tiny random model: every run and check gets a few more overrides.
    import os, sys
    from pathlib import Path
    arguments = sys.argv[1:]
    if arguments[:1] in (["run"], ["check"]) and "--help" not in arguments and "{model}":
        recipe = next((a for a in arguments[1:] if a.endswith(".yaml")), "")
        text = Path(recipe).read_text() if Path(recipe).is_file() else ""
        small = ["train.max_length=512", "train.precision=fp32", "data.accept_dropped=true"]
        if not any(line.startswith("model: runs/") for line in text.splitlines()):  # a run stays what it is
            small += ["model.name={model}", "data.renderer=chatml"]
        if arguments[0] == "run":
            small.append("train.max_steps=2")
        for split in ("train", "eval"):
            if f"{{split}}: {{{{name: tasks" in text and not any(a.startswith(f"data.{{split}}=") for a in arguments):
                small.append(f"data.{{split}}.count=16")
        arguments += small
    if arguments[:1] == ["chat"] and "{model}":
        named = "smollm2-135m" in arguments
        arguments = ["{model}" if one == "smollm2-135m" else one for one in arguments]
        arguments += ["data.renderer=chatml"] if named else []
    os.execv("{python}", [*{forks}, *arguments])
"""

PYTHON = """
    #!/bin/sh
    # What a script of a page is given beside its own arguments: the overrides that make a run small.
    case "$1" in *.py) exec {python} "$@" $SMALL ;; esac
    exec {python} "$@"
"""

PIP = """
    #!/bin/sh
    # Installs folders beside the environment, not into it, and from no index.
    for argument; do [ -d "${{argument%%[*}}" ] && folders="$folders ./${{argument%%[*}}"; done
    exec {python} -m pip install --quiet --no-index --no-deps --no-build-isolation --disable-pip-version-check \\
        --no-warn-conflicts --upgrade --target {site} $folders
"""


_FENCE = re.compile(r"^(?:<!-- *(?P<marker>[^>]*?) *-->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the comment that stands right above it.

    Attributes:
        page: relative to the root.
        language: `sh`, `python`, ...
        text: what is inside.
        marker: `test`, `test: exit 2`, `file: NAME`, `output`, `output of the real model` (which
            only tools/time_tasks.py compares), `not run: WHY`; empty without a comment.
    """

    page: str
    language: str
    text: str
    marker: str


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, also those indented in a list."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [Block(name, m["language"], m["text"], m["marker"] or "") for m in _FENCE.finditer(text)]


def written_pages() -> list[Path]:
    """Pages written by hand."""
    folders = [ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md")]
    generated = {page for folder in ("recipe", "hooks") for page in (ROOT / "docs" / folder).rglob("*.md")}
    return sorted(page for folder in folders for page in folder if page not in generated)


@dataclass(frozen=True)
class Shell:
    """A folder with what a clone holds for its reader, and commands that run in it."""

    folder: Path
    environment: dict[str, str]

    def run(self, script: str) -> tuple[int, str]:
        """Run a script; the exit code of its last command, and what it printed."""
        done = subprocess.run(
            ["bash", "-c", f"set -eo pipefail\n{script}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`page` is each page written by hand; `tested_page` those with commands that a test runs."""
    pages = written_pages()
    runs = [page for page in pages if any(block.marker.startswith("test") for block in read_blocks(page))]
    for name, wanted in (("page", pages), ("tested_page", runs)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, wanted, ids=[path.relative_to(ROOT).as_posix() for path in wanted])


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def blocks() -> Callable[[Path], list[Block]]:
    return read_blocks


@pytest.fixture
def shell(tmp_path: Path, tiny_model: Path, forks: list[str]) -> Shell:
    """A fresh folder beside which nothing is installed and from which nothing is downloaded."""
    return make_shell(tmp_path, str(tiny_model), forks)


@pytest.fixture
def plain_shell(tmp_path: Path, forks: list[str]) -> Shell:
    """The same with the recipes as they are."""
    return make_shell(tmp_path, "", forks)


def make_shell(folder: Path, model: str, forks: list[str]) -> Shell:
    programs, site, work = folder / "bin", folder / "site", folder / "work"
    for path in (programs, site, work):
        path.mkdir()
    for name in ("recipes", "guides"):
        shutil.copytree(ROOT / "docs" / name, work / "docs" / name)
    fill = {"python": sys.executable, "model": model, "site": site, "forks": forks}
    for name, text in (("ft", FT), ("pip", PIP), ("python", PYTHON)):
        program = programs / name
        program.write_text(dedent(text).lstrip("\n").format(**fill), encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("FT_PLUGINS", "PYTEST_CURRENT_TEST")},
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "400",
        "SMALL": f"model.name={model} data.renderer=chatml" if model else "",
    }
    return Shell(work, environment)
