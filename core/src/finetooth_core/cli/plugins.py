"""`ft plugins`: list, show, explain, doctor, new."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

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
@click.pass_context
def explain(context: click.Context, entry: str) -> None:
    """Explain an ENTRY (dpo, loss:dpo or acme:dpo): source, options, and when it is chosen."""
    from finetooth_core.explanation import explain_lines

    for line in explain_lines(_started(context).catalog, entry):
        click.echo(line)


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
