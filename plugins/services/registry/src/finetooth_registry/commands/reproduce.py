"""`ft reproduce`: train a run or a registered version again, and say whether the same came out."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from finetooth_hooks.errors import UserError

if TYPE_CHECKING:
    from finetooth_hooks import CommandContext

    from finetooth_registry.reproducing import Difference


@click.command("reproduce")
@click.argument("what")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the new run; left out, it is removed again.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How far a loss or an evaluation may differ, relative to the recorded one. 0: bit for bit, files too.",
)
@click.option(
    "--registry",
    default="registry",
    envvar="FT_REGISTRY",
    show_default=True,
    help="The registry's folder or URL, for a version.",
)
@click.option("--keep", is_flag=True, help="Keep the outcome as a measurement of the version, for the gate reproduced.")
@click.pass_obj
def reproduce(
    commands: CommandContext, what: str, output: Path | None, tolerance: float, registry: str, keep: bool
) -> None:
    """Train WHAT again and compare: a run, or a version of a registry (NAME@v3, NAME@CHANNEL).

    A base or data that changed are named before anything trains. Conditions that changed (base, data, plugins,
    environment) are listed before what came out differently. Exit code 1:
    something came out differently.
    """
    from finetooth_registry.reproducing import differences, train_again

    if keep and commands.run_folder(what) is not None:
        raise UserError(f"--keep: {what} is a run", action="name a version of a registry, such as bot@v0")
    with ExitStack() as stack:
        spare = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recorded = commands.run_folder(what) or _written(what, registry, spare / "recorded")
        again = train_again(commands, recorded, output or spare / "again", _tell)
        rows = list(differences(recorded, again, tolerance))
    failed = [row for row in rows if row.counts]
    if keep:
        _keep(what, registry, {"differences": float(len(failed)), "tolerance": tolerance})
    if rows:
        from finetooth_toolbox.cli.tables import plain_console, show, table

        console = plain_console()
        cells = [[row.what, row.recorded or "-", row.now or "-"] for row in rows]
        show(console, table(console, what, ("differs", "recorded", "now"), cells))
    how = "bit for bit" if tolerance == 0 else f"within {tolerance:g}"
    if failed:
        click.echo(f"{what} is not reproduced {how}: {failed[0].what} differs first")
        raise click.exceptions.Exit(1)
    click.echo(f"{what} is reproduced {how}")


def _tell(changed: Difference) -> None:
    click.echo(
        f"{changed.what} is not that of the run: {changed.recorded[:12]}, now {changed.now[:12] or 'none'}", err=True
    )


def _keep(what: str, registry: str, outcome: dict[str, float]) -> None:
    from finetooth_registry.evidence_gates import REPRODUCED
    from finetooth_registry.remote import open_registry

    opened = open_registry(registry)
    opened.measure(opened.version(what), {f"{REPRODUCED}/{name}": value for name, value in outcome.items()}, {})


def _written(what: str, registry: str, place: Path) -> Path:
    """The run folder of a version, with each file checked against the record.

    Raises:
        UserError: it does not exist, or a file was changed.
    """
    from finetooth_registry.remote import open_registry
    from finetooth_registry.writing import write_version

    try:
        opened = open_registry(registry)
    except UserError as error:
        raise UserError(
            f"{what}: no run, and {error.problem}", action="name a run, or the registry with --registry"
        ) from error
    return write_version(opened, opened.version(what), place)
