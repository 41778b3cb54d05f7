"""Names of checkpoints, `step-40`, and of folders that a run writes to."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"step-(\d+)")


FOLDER = "checkpoints"
"""Folder of a run that holds its checkpoints."""
SCRATCH = "ft-rank-"
"""Name prefix of the folder in TMPDIR for a rank that does not write to the run folder."""


def name_of(step: int) -> str:
    """The name of the checkpoint after `step` steps."""
    return f"step-{step}"


def step_of(name: str) -> int | None:
    """The step in a checkpoint's name; None for another name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def newest_first(names: Iterable[str]) -> list[str]:
    """Names of checkpoints, the highest step first; other names are left out."""
    steps = {name: step for name in names if (step := step_of(name)) is not None}
    return sorted(steps, key=lambda name: -steps[name])


def split_url(url: str, at: int | None = None) -> tuple[str, int | None]:
    """The URL of a run, and the step in the URL of one of its checkpoints, else `at`."""
    head, _, last = url.rstrip("/").rpartition("/")
    step = step_of(last)
    return (url, at) if step is None else (head, step)
