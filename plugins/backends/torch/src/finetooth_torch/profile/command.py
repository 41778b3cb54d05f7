"""`ft profile`: show again where the time of a run's recorded steps went."""

from __future__ import annotations

from pathlib import Path

import click
from finetooth_hooks import CommandContext, UserError

TABLE = Path("profile") / "table.md"
"""Inside the run folder."""


@click.command("profile")
@click.argument("run", metavar="RUN")
@click.pass_obj
def command(obj: CommandContext, run: str) -> None:
    """Show where the time of the recorded steps of RUN went: a run by its folder or by its name under runs/.

    A recipe with profile: {start: 5, steps: 3} records steps 5 to 7. The run folder then holds profile/trace.json,
    which opens in Perfetto (ui.perfetto.dev) or in chrome://tracing, profile/memory.json and this table.
    """
    folder = obj.run_folder(run)
    if folder is None:
        raise UserError(f"{run}: no run has this name", action="give the folder of a run, or its name under runs/")
    try:
        click.echo((folder / TABLE).read_text(encoding="utf-8"), nl=False)
    except FileNotFoundError:
        raise UserError(
            f"{run}: no step of this run was recorded", action="run it again with profile.steps=3"
        ) from None
