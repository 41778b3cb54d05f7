"""Peers of `make gpu` that nothing else installs: each in a folder of its own with what it asks for, or why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OWN = {"unsloth": "unsloth==2026.10.9", "vllm": "vllm==0.33.0"}
"""They ask for another transformers, TRL or torch than ours, so each has an environment, of several GB. flash-attn is
not among them: its source package compiles for an hour and needs nvcc, and torch has flash kernels of its own."""


@dataclass(frozen=True)
class Peer:
    """A package from elsewhere.

    Attributes:
        python: the interpreter that has it; empty: none.
        why: it is not there.
    """

    python: str = ""
    why: str = "it was not asked for"


def peers(file: Path | None) -> dict[str, Peer]:
    """What was installed, as `install` wrote it; what is in our own environment counts too."""
    said = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}
    ours = {name: Peer(sys.executable, "") for name in OWN if find_spec(name) is not None}
    return {name: Peer(**said.get(name, {})) for name in OWN} | ours


def install(file: Path, end: float, amd: bool) -> None:
    """Install what is missing until `end`, a time of `time.monotonic`. After each, `file` says what is there."""
    said: dict[str, dict[str, str]] = {}
    for name, what in OWN.items():
        folder = ROOT / f".venv-gpu-{name}"
        python = folder / "bin/python"
        if (folder / what).exists():
            why = ""
        elif amd:
            why = "PyPI has no build of it for AMD GPUs"
        elif not (why := _tried(lambda at=folder: [sys.executable, "-m", "venv", str(at)], end)):
            why = _tried(lambda at=python, of=what: [*_pip(at), of], end)
            if not why:
                (folder / what).touch()
        said[name] = {"python": "" if why else str(python), "why": why}
        _write(file, said)


def _pip(python: Path) -> Sequence[str]:
    """The beginning of an installation for an interpreter: by uv where it is, whose cache the environments share."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", str(python)]
    return [str(python), "-m", "pip", "install", "--retries", "1", "--timeout", "10", "--disable-pip-version-check"]


def _tried(command: Callable[[], Sequence[str]], end: float) -> str:
    """Why a command did not do its work; empty if it did."""
    left = end - time.monotonic()
    if left <= 0:
        return "there was no time to install it"
    try:
        done = subprocess.run(command(), capture_output=True, text=True, timeout=left, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"its installation took longer than {left:.0f} s"
    except OSError as error:
        return str(error)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")[:200]


def _write(file: Path, said: dict[str, dict[str, str]]) -> None:
    file.write_text(json.dumps(said, indent=1), encoding="utf-8")
