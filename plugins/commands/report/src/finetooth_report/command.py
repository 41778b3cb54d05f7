"""`ft report RUN`: the page of a run that has ended or is under way."""

from __future__ import annotations

from pathlib import Path

import click
from finetooth_hooks.errors import UserError
from finetooth_saving.run_folder import no_such_run
from finetooth_saving.runs.recorded import find_run, read_run

from finetooth_report.written import PAGE, write


@click.command("report")
@click.argument("run")
@click.option("--output", type=click.Path(path_type=Path), help=f"Write it there; default: {PAGE} in the run's folder.")
def command(run: str, output: Path | None) -> int:
    """Write one self-contained HTML page about RUN, a run's folder or its name under runs/."""
    folder = find_run(run)
    if folder is None:
        raise no_such_run(run)
    recorded = read_run(folder)
    for problem in recorded.problems:
        click.echo(f"left out: {problem}", err=True)
    place = output or folder / PAGE
    if place.is_dir():
        raise UserError(f"--output: {place} is a folder", action="name a file")
    if place.exists() and place.suffix.lower() not in (".html", ".htm"):  # such as the rows of a run
        raise UserError(f"--output: {place} exists and is not a page", action="name a new file, or one of .html")
    try:
        written = write(recorded, place)
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror}", action="choose another --output") from error
    click.echo("\n".join(map(str, written)))
    return 0
