"""The Dockerfile's steps name what is there, and leave out what an image should not have."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "Dockerfile"


def steps() -> list[tuple[str, str]]:
    """Instruction and arguments of every step, with lines joined and comments left out."""
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def test_every_instruction_is_one_and_every_stage_is_named_before_it_is_used() -> None:
    known = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "ENTRYPOINT", "CMD"}
    stages: set[str] = set()
    for word, rest in steps():
        assert word in known, word
        if word == "FROM":
            assert ":" in rest.split()[0], "an image without a version changes by itself"
            stages.update(rest.split()[2:3])
        for used in re.findall(r"--from=(\S+)", rest):
            assert used in stages


@pytest.mark.parametrize("command", [rest for word, rest in steps() if word == "RUN"])
def test_commands_are_a_shells_and_leave_nothing_behind(command: str) -> None:
    checked = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    if "apt-get install" in command:
        assert "--no-install-recommends" in command and "rm -rf /var/lib/apt/lists/*" in command
    if "pip install" in command:
        assert "--no-cache" in command


def test_what_it_installs_is_what_make_install_does() -> None:
    listed = subprocess.run(["make", "--silent", "packages"], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = shlex.split(listed.stdout)
    assert "./core/kernel" in packages and len(packages) > 100
    assert all((ROOT / package / "pyproject.toml").is_file() for package in packages)
    pinned = subprocess.run(["grep", "^torch==", "constraints.txt"], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(r"torch==[\d.]+\n", pinned.stdout), "pip gets one requirement"


def test_it_ends_as_a_user_without_privileges_who_types_ft() -> None:
    told = dict(steps())
    assert told["USER"] not in ("root", "0") and told["ENTRYPOINT"] == '["ft"]'
    last = [rest for word, rest in steps() if word == "FROM"][-1]
    assert " AS " not in last, "the stage that is kept is the last one"
