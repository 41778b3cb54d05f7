"""How much of a plan is shown: `--verbose` and `--quiet`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import click
from finetooth_hooks.errors import UserError

Detail = Literal["line", "choices", "all"]
"""How much of a plan is shown."""


def plan_detail(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--verbose` and `--quiet`, which say how much of the plan is shown; see `detail_of`."""
    verbose = click.option("-v", "--verbose", is_flag=True, help="Show every decision, and the memory by part.")
    quiet = click.option("-q", "--quiet", is_flag=True, help="Show the plan as one line.")
    return verbose(quiet(function))


def detail_of(verbose: bool, quiet: bool) -> Detail:
    """Returns how much a command prints, from its two flags.

    Raises:
        UserError: both are asked for.
    """
    if verbose and quiet:
        raise UserError("--verbose and --quiet ask for opposite things", action="give one of them")
    return "all" if verbose else "line" if quiet else "choices"
