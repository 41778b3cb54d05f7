"""`ft schema`: JSON Schema of the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from finetooth_toolbox.cli.streams import json_text

if TYPE_CHECKING:
    from finetooth_hooks.context import CommandContext


@click.command("schema")
@click.option("--field", metavar="KEY", help="Only this setting, such as train.batch_size or adapter.rank.")
@click.pass_obj
def command(commands: CommandContext, field: str | None) -> None:
    """Print the JSON Schema of the recipe, with the options of everything that is installed.

    Editors complete and check recipes with it: write it to a file and name that in the recipe's first line,
    "# yaml-language-server: $schema=recipe.schema.json".
    """
    click.echo(json_text(commands.schema(field or "")))
