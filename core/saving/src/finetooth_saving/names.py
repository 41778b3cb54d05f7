"""Names of checkpoints, `step-40`, and of folders that hold what a run writes."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"step-(\d+)")


FOLDER = "checkpoints"
"""Folder of a run that holds its checkpoints."""
SCRATCH = "ft-rank-"
"""What the name of a folder in TMPDIR begins with in which a rank works that does not write the run's."""


def name_of(step: int) -> str:
    """The name of the checkpoint after so many steps."""
    return f"step-{step}"


def step_of(name: str) -> int | None:
    """The step that a checkpoint's name says; None for another name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def newest_first(names: Iterable[str]) -> list[str]:
    """Names of checkpoints, the highest step first; other names are left out."""
    steps = {name: step for name in names if (step := step_of(name)) is not None}
    return sorted(steps, key=lambda name: -steps[name])


def split_url(url: str, at: int | None = None) -> tuple[str, int | None]:
    """The URL of a run and a step, from the URL of the run or of one of its checkpoints."""
    head, _, last = url.rstrip("/").rpartition("/")
    step = step_of(last)
    return (url, at) if step is None else (head, step)
