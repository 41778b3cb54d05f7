"""`ft check`: the plan of a recipe, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from finetooth_toolbox.cli.options import accept_memory_option, accepting
from finetooth_toolbox.cli.recipe_arguments import Described, recipe_arguments, with_output

from finetooth_core.cli.detail import detail_of, plan_detail

if TYPE_CHECKING:
    from finetooth_core.cli.state import State


@click.command("check")
@recipe_arguments
@plan_detail
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@accept_memory_option
@click.pass_obj
def command(
    state: State,
    recipe: Described,
    overrides: tuple[str, ...],
    output: str | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    accept_memory: bool,
) -> None:
    """Show what a run of RECIPE would do: its decisions with their reasons, the data, the memory.

    KEY=VALUE changes one setting, as for ft run. Reads the recipe, the data and the model's config; loads no weights
    and writes nothing. Exit code 2 if a listed exporter would refuse the run, or if the plan needs too much memory; it
    says what would fit.
    """
    detail = detail_of(verbose, quiet)
    session = state.session(recipe, accepting(with_output(overrides, output), accept_memory))
    session.check_output()
    session.check_admitted()
    if as_json:
        import json

        from finetooth_core.planning.plan import as_json as plain

        click.echo(json.dumps(plain(session.plan), indent=2, sort_keys=True))
        state.said_json = True
    else:
        from finetooth_rows.choices.ahead import lines_ahead
        from finetooth_toolbox.cli.tables import plain_console, show

        from finetooth_core.cli import render

        console = plain_console()
        show(console, *render.plan_parts(console, session.plan, session.reports, detail, every=session.every_report))
        for line in lines_ahead(session.job):
            console.print(line, markup=False, soft_wrap=True)
    session.check_memory()
