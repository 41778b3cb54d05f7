"""The arguments that every command with a recipe takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem


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


def with_output(overrides: Sequence[str], output: str | None) -> tuple[str, ...]:
    """The overrides, and `--output` as one of them; its text is never read as a number."""
    return tuple(overrides) if output is None else (*overrides, f"output={json.dumps(output, ensure_ascii=False)}")


def complete_override(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Settings of the core that begin with what is typed; options of entries are not known without the recipe."""
    from finetooth_core.recipe import setting_names

    names = [f"{name}=" for name in setting_names() if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] if "=" not in incomplete else []
