"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click


def accept_memory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--accept-memory`."""
    text = "Begin although the plan says that memory will not suffice."
    made: Callable[..., Any] = click.option("--accept-memory", is_flag=True, help=text)(function)
    return made


def accepting(overrides: Sequence[str], accepted: bool) -> tuple[str, ...]:
    """The overrides, and `--accept-memory` as one of them."""
    return (*overrides, "train.accept_memory=true") if accepted else tuple(overrides)
