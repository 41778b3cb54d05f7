"""Options of several commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

LOG_LEVEL = "--log-level"
LEVELS = ("debug", "info", "warning", "error")


def accept_memory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--accept-memory`."""
    text = "Begin although the plan says that memory will not suffice."
    made: Callable[..., Any] = click.option("--accept-memory", is_flag=True, help=text)(function)
    return made


def accepting(overrides: Sequence[str], accepted: bool) -> tuple[str, ...]:
    """The overrides, and `--accept-memory` as one of them."""
    return (*overrides, "train.accept_memory=true") if accepted else tuple(overrides)


def start_options() -> list[click.Parameter]:
    """The options that are read before parsing, for the help text: they may be anywhere on the line."""
    said = "Also load this plugin; may be repeated. The variable FT_PLUGINS does the same."
    trust = "Run the Python files that a run folder names, even if no run of this machine has used them."
    logs = "Show on stderr what libraries log, from this level on. The variable FT_LOG_LEVEL does the same."
    return [
        click.Option(["--plugins"], multiple=True, expose_value=False, metavar="FILE_OR_MODULE", help=said),
        click.Option(
            ["-p"], multiple=True, expose_value=False, metavar="no:DIST", callback=_only_blocks,
            help="Leave an installed plugin out.",
        ),
        click.Option(["--trust-code"], is_flag=True, expose_value=False, help=trust),
        click.Option(
            [LOG_LEVEL], type=click.Choice(LEVELS), expose_value=False, is_eager=True, envvar="FT_LOG_LEVEL",
            callback=_show_logs, help=logs,
        ),
        click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."),
    ]  # fmt: skip


def _only_blocks(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    if value:
        raise click.BadParameter(f"{value[0]!r} does not start with no:; use --plugins to load a plugin", ctx)


def _show_logs(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Set the log level in this process, in processes that it starts, and in libraries with their own level."""
    if value is not None and not ctx.resilient_parsing:
        import logging

        os.environ["FT_LOG_LEVEL"] = value
        for library in ("TRANSFORMERS", "DATASETS", "HF_HUB"):
            os.environ.setdefault(f"{library}_VERBOSITY", value)
        logging.basicConfig(level=value.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
