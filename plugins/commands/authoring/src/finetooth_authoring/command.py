"""`ft plugins explain`, `ft plugins doctor` and `ft plugins new`."""

from __future__ import annotations

from pathlib import Path

import click
from finetooth_hooks.context import CommandContext
from finetooth_saving.run_folder import RECIPE, plan_of, run_of


@click.command("explain")
@click.argument("entry")
@click.argument("recipe", metavar="[RECIPE_OR_RUN]", required=False)
@click.pass_obj
def explain(context: CommandContext, entry: str, recipe: str | None) -> None:
    """Explain an ENTRY (lora, adapter:lora or finetooth-lora:lora): source, options, and when it is chosen.

    With a recipe, or a run by its folder or by its name under runs/, also why that one chose it, or what it chose in
    its place.
    """
    from finetooth_authoring.explanation import choice_lines, explain_lines

    if recipe is None:
        for line in explain_lines(context, context.catalog, entry):
            click.echo(line)
        return
    run = run_of(recipe)
    given = context.load(recipe if run is None else run / RECIPE)
    catalog = context.context(given).catalog
    for line in explain_lines(context, catalog, entry):
        click.echo(line)
    if run is None:
        decisions = [(d.setting, str(d.value), d.reason) for d in context.plan(given).decisions]
    else:
        decisions = [(d["setting"], str(d["value"]), d["reason"]) for d in plan_of(run)["decisions"]]
    for line in choice_lines(catalog, entry, decisions):
        click.echo(line)


@click.command("doctor")
@click.argument("names", metavar="[PLUGIN]...", nargs=-1)
@click.option("--fast", is_flag=True, help="Only hooks, builders and options; build nothing.")
@click.option("--verbose", is_flag=True, help="Also list the checks that do not apply.")
@click.pass_context
def doctor(ctx: click.Context, names: tuple[str, ...], fast: bool, verbose: bool) -> None:
    """Check plugins: import, versions, duplicates, conformance. Exit code 2 on a fault."""
    from finetooth_authoring.doctor import examine

    faults = 0
    for examination in examine(ctx.obj, names, thorough=not fast):
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
        ctx.exit(2)


@click.command("new")
@click.argument("name")
@click.option("--kind", required=True, help="What it brings: loss, reward, source, ...")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write it; default is ./NAME.")
@click.pass_obj
def new(context: CommandContext, name: str, kind: str, folder: Path | None) -> None:
    """Write a new plugin NAME that passes its own tests as it stands."""
    from finetooth_authoring.scaffold import create

    written = create(name, kind, context.catalog, folder)
    click.echo(f"wrote {written}")
    click.echo(f"try it: pip install -e {written} && pytest {written} && ft plugins doctor {name}")
