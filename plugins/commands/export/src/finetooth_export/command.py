"""`ft export`: write what a run trained for another tool."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from finetooth_hooks.context import CommandContext
from finetooth_hooks.exporters import Exported
from finetooth_saving.exporting import export
from finetooth_saving.moved_bases import base_moved
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.text.measures import size


@click.command("export")
@click.argument("run", metavar="RUN")
@click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--to", "exporter", required=True, metavar="EXPORTER", help="One of ft plugins list --kind exporter.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write; default: in the run folder.")
@click.option(
    "--bound",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="How much worse than the run the written model may be, by the run's own evaluator.",
)
@click.option("--unmeasured", is_flag=True, help="Evaluate neither the run nor the written model.")
@click.pass_obj
def command(
    context: CommandContext,
    run: str,
    options: tuple[str, ...],
    exporter: str,
    output: Path | None,
    bound: float,
    unmeasured: bool,
) -> None:
    """Write what RUN trained for another tool, read it back and compare.

    RUN is the folder of a run or its name under runs/. KEY=VALUE sets an option of the exporter, model=NEW says where
    the run's base is now. The folder holds a model card and what the tool reads. The run's own evaluator measures the
    run and the written model; a model that is worse by more than --bound is not kept.
    """
    moved = [option for option in options if option.startswith("model=")]
    folder = context.run_folder(run) if moved else None
    if folder is not None:
        click.get_current_context().with_resource(base_moved(folder, moved))
    pick = context.pick(exporter, [option for option in options if option not in moved])
    with working(f"exporting {run} to {exporter}"):
        target, exported = export(context, run, pick, output, bound=None if unmeasured else bound)
    show(target, exported, f"exported {run} to {exporter}")


def show(target: Path, exported: Exported, done: str) -> None:
    """Print the files of an export, what was checked, and how it is used."""
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        click.echo(f"  {path.relative_to(target).as_posix():<40} {size(path.stat().st_size)}")
    for check in exported.checks:
        click.echo(f"checked: {check}")
    click.echo(f"{done}: {target}")
    if exported.use:
        click.echo(f"try: {exported.use.format(folder=shlex.quote(str(target)))}")
