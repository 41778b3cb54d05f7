"""`ft plugins`: list, show, explain, doctor, new."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from finetooth_saving.run_folder import PLAN, RECIPE, run_of

from finetooth_core.cli.state import State

if TYPE_CHECKING:
    from finetooth_core.manager import Plugins


def _started(context: click.Context) -> Plugins:
    """The plugins, started so that broken ones can be looked at even if the user named them."""
    from finetooth_core import manager

    state = context.find_object(State)
    assert state is not None
    options = state.start_options
    return manager.start(files=options.plugins, blocked=options.blocked, strict=False)


@click.group("plugins")
def command() -> None:
    """Look at the installed plugins, check them, begin a new one."""


@command.command("list")
@click.option("--kind", help="Only plugins with entries of this kind.")
@click.pass_context
def list_(context: click.Context, kind: str | None) -> None:
    """List plugins: distribution, version, entries, and what is broken."""
    from finetooth_core.plugin_tables import list_lines

    for line in list_lines(_started(context), kind):
        click.echo(line)


@command.command()
@click.argument("plugin")
@click.pass_context
def show(context: click.Context, plugin: str) -> None:
    """Show one PLUGIN: where it is, what it needs, offers and observes."""
    from finetooth_core.plugin_tables import show_lines

    for line in show_lines(_started(context), plugin):
        click.echo(line)


@command.command()
@click.argument("entry")
@click.argument("recipe", metavar="[RECIPE_OR_RUN]", required=False)
@click.pass_context
def explain(context: click.Context, entry: str, recipe: str | None) -> None:
    """Explain an ENTRY (lora, adapter:lora or finetooth-lora:lora): source, options, and when it is chosen.

    With a recipe, or a run by its folder or by its name under runs/, also why that one chose it, or what it chose in
    its place.
    """
    from finetooth_core.explanation import choice_lines, explain_lines

    state = context.find_object(State)
    assert state is not None
    catalog = _started(context).catalog if recipe is None else state.session(recipe_of(recipe)).plugins.catalog
    for line in explain_lines(catalog, entry):
        click.echo(line)
    if recipe is not None:
        for line in choice_lines(catalog, entry, decisions_of(state, recipe)):
            click.echo(line)


def recipe_of(recipe: str) -> str:
    """The recipe file of a run, or the recipe itself."""
    run = run_of(recipe)
    return recipe if run is None else str(run / RECIPE)


def decisions_of(state: State, recipe: str) -> list[tuple[str, str, str]]:
    """Setting, value and reason of every decision: of the run's own plan, or of a plan made now."""
    import json

    run = run_of(recipe)
    if run is not None:
        plan = json.loads((run / PLAN).read_text(encoding="utf-8"))
        return [(d["setting"], str(d["value"]), d["reason"]) for d in plan["decisions"]]
    return [(d.setting, str(d.value), d.reason) for d in state.session(recipe).plan.decisions]


@command.command()
@click.argument("names", metavar="[PLUGIN]...", nargs=-1)
@click.option("--fast", is_flag=True, help="Only hooks, builders and options; build nothing.")
@click.option("--verbose", is_flag=True, help="Also list the checks that do not apply.")
@click.pass_context
def doctor(context: click.Context, names: tuple[str, ...], fast: bool, verbose: bool) -> None:
    """Check plugins: import, versions, duplicates, conformance. Exit code 2 on a fault."""
    from finetooth_core.doctor import examine

    faults = 0
    for examination in examine(_started(context), names, thorough=not fast):
        mark = "ok" if examination.healthy else "FAULT"
        passed = f"{examination.passed} checks passed" if examination.passed else ""
        click.echo(f"{mark:5}  {examination.name} {examination.version}".rstrip() + (f"  {passed}" if passed else ""))
        for finding in examination.findings:
            click.echo(f"       {'' if finding.fault else 'note: '}{finding.line()}")
            faults += finding.fault
        for skipped in examination.skipped if verbose else ():
            click.echo(f"       skipped: {skipped}")
    if faults:
        click.echo(f"{faults} fault{'s' if faults > 1 else ''}", err=True)
        context.exit(2)


@command.command()
@click.argument("name")
@click.option("--kind", required=True, help="What it brings: loss, reward, source, ...")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write it; default is ./NAME.")
@click.pass_context
def new(context: click.Context, name: str, kind: str, folder: Path | None) -> None:
    """Write a new plugin NAME that passes its own tests as it stands."""
    from finetooth_core.scaffold import create

    written = create(name, kind, _started(context).catalog, folder)
    click.echo(f"wrote {written}")
    click.echo(f"try it: pip install -e {written} && pytest {written} && ft plugins doctor {name}")
