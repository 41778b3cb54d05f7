"""How near a number is to the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from finetooth_hooks import Context, Options
from finetooth_hooks.protocols import Reward

NUMBER = re.compile(r"-?\d+")


class NearOptions(Options):
    """Options of `near`."""

    column: str = "answer"
    """Column with the right number."""
    scale: float = 4.0
    """Distance at which an answer is worth 0.37 of half."""


def build(options: NearOptions, context: Context) -> Reward:
    """Called once a run."""

    def near(
        prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        return [
            score(said, str(right), options.scale)
            for said, right in zip(completions, columns[options.column], strict=True)
        ]

    return near


def score(said: str, right: str, scale: float) -> float:
    """1 for the number alone; half and less for one nearby; 0 without one."""
    found = NUMBER.search(said)
    if found is None:
        return 0.0
    bare = said.strip().rstrip(".") == found.group()
    off = abs(int(found.group()) - int(right))
    return (0.5 if bare else 0.25) * exp(-off / scale) + (0.5 if bare and off == 0 else 0.0)
