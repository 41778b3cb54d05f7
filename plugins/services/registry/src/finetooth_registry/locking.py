"""Lock files: every installed distribution with its version, and the SHA-256 of its archive where that is known.

A lock file is a requirements file: pip accepts it, also with `--require-hashes` if every line has a hash. pip records
the hash of an archive that it installed from a file or a URL; for those from an index, pip is asked.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError

LOCK = "requirements.lock"
"""The name of the lock file among the files of a version."""
FOLDER = "# from a folder: "
"""Prefix of the line of a distribution that was installed from a folder, and is in no index."""
_HEAD = "# Python {python} on {machine}. In an environment of its own:\n# pip install --no-deps -r requirements.lock\n"
_PYTHON = re.compile(r"# Python (\S+) on ")
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)(?: --hash=sha256:([0-9a-f]{64}))?")
_NOT_THERE = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)==")


@dataclass(frozen=True)
class Locked:
    """An installed distribution.

    Attributes:
        sha256: of its archive; empty if it is not known.
        folder: it was installed from a folder.
    """

    name: str
    version: str
    sha256: str = ""
    folder: bool = False

    @property
    def line(self) -> str:
        """The line of a lock file."""
        known = f" --hash=sha256:{self.sha256}" if self.sha256 else ""
        return f"{FOLDER if self.folder else ''}{self.name}=={self.version}{known}"


def installed() -> tuple[Locked, ...]:
    """Every installed distribution, by name; the first on the path wins, as for imports."""
    first: dict[str, Locked] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        first.setdefault(name, _locked(name, distribution))
    return tuple(first[name] for name in sorted(first))


def _locked(name: str, distribution: Distribution) -> Locked:
    direct_url: dict[str, Any] = json.loads(distribution.read_text("direct_url.json") or "{}")
    archive = direct_url.get("archive_info") or {}
    sha256 = (archive.get("hashes") or {}).get("sha256", "") or str(archive.get("hash", "")).removeprefix("sha256=")
    return Locked(name, distribution.version, sha256, folder="dir_info" in direct_url)


def text_of(locked: Iterable[Locked]) -> str:
    """A lock file."""
    head = _HEAD.format(python=platform.python_version(), machine=f"{platform.system()} {platform.machine()}")
    return head + "".join(f"{each.line}\n" for each in locked)


def read(text: str, where: str) -> tuple[Locked, ...]:
    """The distributions of a lock file.

    Raises:
        UserError: a line is invalid, or there is none.
    """
    made = []
    for number, line in enumerate(text.splitlines(), start=1):
        folder = line.startswith(FOLDER)
        if not line.strip() or (line.startswith("#") and not folder):
            continue
        match = _LINE.fullmatch(line.removeprefix(FOLDER).rstrip())
        if match is None:
            raise UserError(f"{where}:{number}: not NAME==VERSION", action="take a file that ft registry lock wrote")
        made.append(Locked(match[1], match[2], match[3] or "", folder))
    if not made:
        raise UserError(f"{where} names no distribution", action="take a file that ft registry lock wrote")
    return tuple(made)


def with_index_hashes(locked: Sequence[Locked]) -> tuple[Locked, ...]:
    """The distributions, with missing hashes from pip's index, which may lack some.

    Raises:
        UserError: pip fails.
    """
    left = {each.name: each for each in locked if not each.sha256 and not each.folder}
    known: dict[str, str] = {}
    while left:
        done = _pip("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", *(
            f"{each.name}=={each.version}" for each in left.values()
        ))  # fmt: skip
        if done.returncode == 0:
            for item in json.loads(done.stdout)["install"]:
                name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
                known[name] = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256", "")
            break
        lacking = _NOT_THERE.search(done.stderr)
        if lacking is None or left.pop(lacking[1], None) is None:
            raise UserError(
                f"pip gives no hashes: {_last(done.stderr)}", action="check pip's index, or leave out --ask"
            )
    return tuple(replace(each, sha256=each.sha256 or known.get(each.name, "")) for each in locked)


def differing(before: Iterable[Locked], now: Iterable[Locked]) -> dict[str, tuple[str, str]]:
    """Distributions whose version or known archive differs: both as text; empty if missing."""
    old, new = ({each.name: each for each in side} for side in (before, now))
    changed = {}
    for name in sorted(old.keys() | new.keys()):
        was, is_now = old.get(name), new.get(name)
        same_archive = was and is_now and (not was.sha256 or not is_now.sha256 or was.sha256 == is_now.sha256)
        if not (was and is_now and was.version == is_now.version and same_archive):
            changed[name] = (_called(was), _called(is_now))
    return changed


def misfit(locked: Iterable[Locked], about: Mapping[str, Any], python: str = "") -> str:
    """Contradictions of a lock file with a run's record; empty if none.

    Args:
        about: `environment` and `plugins` of the run.
        python: version of the lock file; empty: this one.
    """
    run_versions = {**about.get("plugins", {}), **about.get("environment", {})}
    versions = {each.name: each.version for each in locked}
    for name, recorded in run_versions.items():
        now = (python or platform.python_version()) if name == "python" else versions.get(name)
        if now is not None and now != recorded:
            return f"{name} is {now}, and the run had {recorded}"
    return "" if "python" in run_versions else "the run did not record its environment"


def python_of(text: str) -> str:
    """The Python version of a lock file; empty if unknown."""
    match = _PYTHON.match(text)
    return match[1] if match else ""


def install(text: str, where: str, folder: Path) -> tuple[Locked, ...]:
    """Make an environment from a lock file; pip checks the hash of every archive.

    Args:
        folder: must not exist.

    Returns:
        Distributions to install by hand, which came from a folder.

    Raises:
        UserError: the folder exists, a hash is missing, the lock is for another Python, or pip fails.
    """
    locked = read(text, where)
    if folder.exists():
        raise UserError(f"{folder} exists", action="choose another folder")
    if python_of(text).split(".")[:2] != platform.python_version().split(".")[:2]:
        raise UserError(f"{where} is of Python {python_of(text)}", action="run this command with that Python")
    if bare := [each.name for each in locked if not each.sha256 and not each.folder]:
        text = f"{where}: no hash of {bare[0]}" + (f" and {len(bare) - 1} more" if len(bare) > 1 else "")
        raise UserError(text, action="write the lock file with ft registry lock --ask where the run trained")
    venv.create(folder, with_pip=True)
    with tempfile.TemporaryDirectory() as place:
        wanted = Path(place) / LOCK
        wanted.write_text("".join(f"{each.line}\n" for each in locked if not each.folder), encoding="utf-8")
        python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        done = _pip("install", "--no-deps", "--require-hashes", "--quiet", "-r", str(wanted), python=python)
    if done.returncode:
        raise UserError(f"pip refuses: {_last(done.stderr)}", action=f"remove {folder}, and check the archive it names")
    return tuple(each for each in locked if each.folder)


def _pip(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last(output: str) -> str:
    """The line of pip's output with the error."""
    if changed := re.search(r"^\s+(\S+==\S+) from .*:\n\s+Expected sha256", output, re.MULTILINE):
        return f"the archive of {changed[1]} has not the hash of the lock file"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    wrong = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (wrong or lines or ["it says nothing"])[0]


def _called(locked: Locked | None) -> str:
    return "" if locked is None else f"{locked.version} {locked.sha256[:12]}".rstrip()
