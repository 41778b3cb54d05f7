"""Runs `ft` in an environment that decides nothing, and reads the numbers that a run has left."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import Case

MEASURED = re.compile(r"seconds|_per_second|memory|^mfu$")
"""Values that no two runs share."""
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "FT_NATIVE_ISA")
"""Variables that keep torch, what it calls, and compiled kernels from instructions that the CPU has."""
LONGEST = 600
"""Seconds that one command may take."""

Found = dict[str, str]
"""What is compared: a number as `repr` writes it, or a SHA-256, by what it is of."""


class CommandFailed(Exception):
    """`ft` ended with another exit code than 0; the message has the end of its output."""


def ft() -> list[str]:
    """The command beside this interpreter, or the module."""
    beside = Path(sys.executable).with_name("ft")
    return [str(beside)] if beside.is_file() else [sys.executable, "-m", "finetooth"]


def environment(scratch: Path) -> dict[str, str]:
    """This one without settings of finetooth's but what it is compiled for, one thread, no network, and a cache that
    begins empty."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FT_") or name in LIMITS}
    fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**kept, **fixed, "FT_CACHE": str(scratch / "cache")}


def command(folder: Path, *arguments: str) -> None:
    """Run `ft` there.

    Raises:
        CommandFailed: it failed.
    """
    done = subprocess.run(
        [*ft(), *arguments], cwd=folder, env=environment(folder.parent), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CommandFailed(f"ft {' '.join(arguments)}: exit code {done.returncode}: {done.stdout[-1500:]}")


def run_case(case: Case, scratch: Path, overrides: Sequence[str]) -> Found:
    """Train what the case describes, and read what came of it.

    Args:
        overrides: `key=value` after the recipe.

    Raises:
        CommandFailed: a command failed.
    """
    folder = scratch / case.name
    (folder / "after").mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(case.recipe))
    command(folder, "run", "recipe.json", *overrides)
    found = left(folder / "run")
    for arguments in case.after:
        command(folder, *arguments)
    found |= {f"after: {name}": value for name, value in contents(folder / "after").items()}
    if case.resume_at:
        shutil.copytree(folder / "run", folder / "again")
        shutil.rmtree(folder / "again" / "artifact")
        command(folder, "resume", "again", "--at", str(case.resume_at))
        again = left(folder / "again")
        other = sorted(name for name in found.keys() | again.keys() if found.get(name) != again.get(name))
        found["resumed run is the same"] = f"no: {'; '.join(other)}" if other else "yes"
        found |= {f"resumed: {name}": value for name, value in again.items()}
    return found


def left(run: Path) -> Found:
    """Tensors of the artifact, and everything that was told of steps and evaluations."""
    found = {f"artifact: {name}": value for name, value in contents(run / "artifact").items()}
    if not found:
        raise CommandFailed(f"{run.name} has no tensors in its artifact")
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["event"] not in ("step", "evaluation"):
            continue
        place = f"{line.pop('event')} {line.pop('step')} {line.pop('name', '')}".strip()
        found |= {f"{place}: {name}": value for name, value in plain(line)}
    return found


def plain(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Numbers as text, lists as hashes, by their path; without what was measured."""
    for name, value in values.items():
        if MEASURED.search(name):
            continue
        if isinstance(value, Mapping):
            yield from plain(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", sha256_of(value) if isinstance(value, list) else repr(value)


def contents(folder: Path) -> Found:
    """A hash for every tensor of the safetensors files below, and for every line of JSON lines."""
    found: Found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".safetensors":
            found |= {f"{name} {tensor}": value for tensor, value in tensors(file)}
        elif file.suffix == ".jsonl":
            lines = file.read_text().splitlines()
            found |= {f"{name} {number}": sha256_of(json.loads(line)) for number, line in enumerate(lines, 1)}
    return found


def tensors(file: Path) -> Iterator[tuple[str, str]]:
    """Name, and SHA-256 of name, type, shape and bytes, of each tensor. Metadata are left out, and the order of tensors
    in the file. Read by hand: NumPy has no bfloat16."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    for name in sorted(header):
        begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
        about = json.dumps([name, header[name]["dtype"], header[name]["shape"]]).encode()
        yield name, hashlib.sha256(about + content[begin:end]).hexdigest()


def sha256_of(value: Any) -> str:
    """Of JSON, in which floats are written so that they read back as they were."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
