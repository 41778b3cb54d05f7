"""The arguments that every command with a recipe takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem
from finetooth_hooks.errors import UserError

if TYPE_CHECKING:
    from finetooth_core.cli.render import Detail


def recipe_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds RECIPE, the overrides KEY=VALUE and `--output`, and the start options for the help text."""
    from finetooth_core.cli.group import start_options

    overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_override)
    recipe = click.argument("recipe", type=click.Path())
    output = click.option("--output", metavar="DIR", help="The run folder; the same as output=DIR.")
    made: Callable[..., Any] = recipe(overrides(output(function)))
    for option in reversed(start_options()):
        made.__click_params__.insert(0, option)  # type: ignore[attr-defined]
    return made


def accept_memory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--accept-memory`."""
    text = "Begin although the plan says that memory will not suffice."
    made: Callable[..., Any] = click.option("--accept-memory", is_flag=True, help=text)(function)
    return made


def accepting(overrides: Sequence[str], accepted: bool) -> tuple[str, ...]:
    """The overrides, and `--accept-memory` as one of them."""
    return (*overrides, "train.accept_memory=true") if accepted else tuple(overrides)


def plan_detail(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--verbose` and `--quiet`, which say how much of the plan is shown; see `detail_of`."""
    verbose = click.option("-v", "--verbose", is_flag=True, help="Show every decision, and the memory by part.")
    quiet = click.option("-q", "--quiet", is_flag=True, help="Show the plan as one line.")
    return verbose(quiet(function))


def detail_of(verbose: bool, quiet: bool) -> Detail:
    """
    Raises:
        UserError: both are asked for.
    """
    if verbose and quiet:
        raise UserError("--verbose and --quiet ask for opposite things", action="give one of them")
    return "all" if verbose else "line" if quiet else "choices"


def with_output(overrides: Sequence[str], output: str | None) -> tuple[str, ...]:
    """The overrides, and `--output` as one of them; its text is never read as a number."""
    return tuple(overrides) if output is None else (*overrides, f"output={json.dumps(output, ensure_ascii=False)}")


def complete_override(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Settings of the core that begin with what is typed; options of entries are not known without the recipe."""
    from finetooth_core.recipe import setting_names

    names = [f"{name}=" for name in setting_names() if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] if "=" not in incomplete else []
