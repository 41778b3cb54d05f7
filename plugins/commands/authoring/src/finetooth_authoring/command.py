"""`ft plugins explain`, `ft plugins doctor`, `ft plugins new` and `ft plugins try`."""

from __future__ import annotations

from pathlib import Path

import click
from finetooth_hooks import UserError, install_command
from finetooth_hooks.context import CommandContext
from finetooth_saving.run_folder import RECIPE, plan_of, run_of


@click.command("explain")
@click.argument("entry")
@click.argument("recipe", metavar="[RECIPE_OR_RUN]", required=False)
@click.pass_obj
def explain(context: CommandContext, entry: str, recipe: str | None) -> None:
    """Explain an ENTRY (lora, adapter:lora or finetooth-lora:lora): source, options, and when it is chosen.

    With a recipe, or a run by its folder or by its name under runs/, also why this recipe or run chose the entry, or
    which one it chose instead.
    """
    from finetooth_authoring.explanation import choice_lines, explain_lines

    if recipe is None:
        for line in explain_lines(context, context.catalog, entry):
            click.echo(line)
        return
    run = run_of(recipe)
    loaded = context.load(recipe if run is None else run / RECIPE)
    catalog = context.context(loaded).catalog
    for line in explain_lines(context, catalog, entry):
        click.echo(line)
    if run is None:
        decisions = [(d.setting, str(d.value), d.reason) for d in context.plan(loaded).decisions]
    else:
        decisions = [(d["setting"], str(d["value"]), d["reason"]) for d in plan_of(run)["decisions"]]
    for line in choice_lines(catalog, entry, decisions):
        click.echo(line)


@click.command("doctor")
@click.argument("names", metavar="[PLUGIN]...", nargs=-1)
@click.option("--fast", is_flag=True, help="Check only hooks, builders and options; build nothing.")
@click.option("--verbose", is_flag=True, help="Also list the checks that do not apply.")
@click.pass_context
def doctor(ctx: click.Context, names: tuple[str, ...], fast: bool, verbose: bool) -> None:
    """Check plugins: import, versions, duplicates, conformance. Exit code 2 on a fault."""
    from finetooth_authoring.doctor import announcement, examine

    faults = 0
    click.echo(announcement(len(ctx.obj.plugin_facts(names)), thorough=not fast), err=True)
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
@click.option("--kind", required=True, help="Kind of its entry: loss, reward, source, ...")
@click.option("--folder", type=click.Path(path_type=Path), help="The folder to write; default: ./NAME.")
@click.option("--model", help="With --kind family: a model of an unknown type, to read its facts.")
@click.pass_obj
def new(context: CommandContext, name: str, kind: str, folder: Path | None, model: str | None) -> None:
    """Write a new plugin NAME that already passes its own tests."""
    from finetooth_authoring.family_values import family_values
    from finetooth_authoring.scaffold import create

    if model is not None and kind != "family":
        raise UserError(f"--model: a plugin of kind {kind} is not written from a model", action="leave it out")
    written = create(name, kind, context.catalog, folder, family_values(context, model) if model else None)
    click.echo(f"wrote {written}")
    click.echo(
        f"check it: {install_command('-e', f'{written}[testing]')} && pytest {written} && ft plugins doctor {name}"
    )
    click.echo(f"train three steps with it: ft plugins try {name}")


@click.command("try")
@click.argument("name")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--limit", default=120.0, show_default=True, help="Seconds that an entry's process may take.")
@click.pass_context
def try_(ctx: click.Context, name: str, overrides: tuple[str, ...], limit: float) -> None:
    """Train three steps of a tiny model with each entry of the plugin NAME. Exit code 2 on a fault.

    Each entry has a process of its own. The report says how it failed: raises, hangs, NaN, None, shape, type (a value
    of another type), no gradient, or refused (the recipe does not suit the entry; overrides such as method=dpo or
    data.train=rows.jsonl make another one).
    """
    if second := next((word for word in overrides if "=" not in word), ""):
        raise UserError(f"{second}: ft plugins try takes one plugin, then KEY=VALUE", action="try each by itself")
    from tempfile import TemporaryDirectory

    from finetooth_authoring.trials import trials

    faults = 0
    with TemporaryDirectory(prefix="ft-try-") as folder:
        for trial in trials(ctx.obj, name, overrides, limit=limit, folder=Path(folder)):
            mark = "FAULT" if trial.fault else "ok" if trial.tried else "-"
            fault = f"{trial.fault}: " if trial.fault else ""
            click.echo(f"{mark:5}  {trial.entry}  {fault}{trial.text}")
            faults += bool(trial.fault)
    if faults:
        click.echo(f"{faults} fault{'s' if faults > 1 else ''}", err=True)
        ctx.exit(2)
