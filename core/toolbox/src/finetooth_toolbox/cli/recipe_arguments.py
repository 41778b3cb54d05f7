"""The arguments that every command with a recipe takes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from finetooth_hooks.errors import UserError

from finetooth_toolbox.cli.options import start_options

SECTIONS = (
    "model", "data", "method", "adapter", "quantization", "optimizer", "schedule", "train", "evaluate", "checkpoint",
    "trackers", "export", "output",
)  # fmt: skip
"""Sections of a recipe in reading order, for commands that write a recipe."""

Described = str | Mapping[str, Any]
"""The path of a recipe, or a recipe."""

FLAGS = {"model": "model.name", "data": "data.train", "held_out": "data.eval", "method": "method"}
"""Options for the most common settings, with these settings."""


def recipe_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds RECIPE, the overrides KEY=VALUE, `--output`, and options that describe a recipe without a file.

    The command gets `recipe`, the path or an empty mapping, and `overrides`, with the options first. The start options
    are added for the help text.
    """

    @functools.wraps(function)
    def described(*arguments: Any, recipe: str | None, overrides: tuple[str, ...], **options: Any) -> Any:
        settings = {setting: text for name, setting in FLAGS.items() if (text := options.pop(name)) is not None}
        described_by, overrides = _described(recipe, overrides, bool(settings))
        flags = [f"{setting}={json.dumps(text, ensure_ascii=False)}" for setting, text in settings.items()]
        return function(*arguments, recipe=described_by, overrides=(*flags, *overrides), **options)

    made: Callable[..., Any] = described
    made = click.option("--output", metavar="DIR", help="The run folder; the same as output=DIR.")(made)
    made = click.option("--method", metavar="NAME", help="The method; ft plugins list --kind method shows all.")(made)
    made = click.option("--eval", "held_out", metavar="DATA", help="Held-out rows; the same as data.eval=DATA.")(made)
    made = click.option("--data", metavar="DATA", help="Rows to train on; the same as data.train=DATA.")(made)
    made = click.option("--model", metavar="MODEL", help="The base model. With --data, no RECIPE is needed.")(made)
    made = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_override)(made)
    made = click.argument("recipe", type=click.Path(), required=False, metavar="[RECIPE]")(made)
    for option in reversed(start_options()):
        made.__click_params__.insert(0, option)  # type: ignore[attr-defined]
    return made


def _described(recipe: str | None, overrides: tuple[str, ...], flags: bool) -> tuple[Described, tuple[str, ...]]:
    """The recipe's path, or an empty recipe that the overrides fill, if the first argument is `KEY=VALUE`.

    Raises:
        UserError: neither a recipe nor settings are given.
    """
    if recipe is not None and not (flags and "=" in recipe and not Path(recipe).exists()):
        return recipe, overrides
    if not flags:
        path = click.get_current_context().command_path
        raise UserError("Missing argument 'RECIPE'", action=f"name one, or give --model and --data; see {path} --help")
    return {}, overrides if recipe is None else (recipe, *overrides)


def with_output(overrides: Sequence[str], output: str | None) -> tuple[str, ...]:
    """The overrides, and `--output` as one of them; its text is never read as a number."""
    return tuple(overrides) if output is None else (*overrides, f"output={json.dumps(output, ensure_ascii=False)}")


def complete_override(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Settings of the core that begin with the typed text; options of entries are unknown without the recipe."""
    names = [f"{name}=" for name in ctx.find_root().obj.setting_names() if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] if "=" not in incomplete else []
