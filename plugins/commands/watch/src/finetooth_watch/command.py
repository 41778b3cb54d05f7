"""`ft watch RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from finetooth_hooks.errors import UserError
from finetooth_saving.run_folder import no_such_run
from finetooth_saving.runs.recorded import find_run, runs_below


@click.command("watch")
@click.argument("run", required=False)
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between two updates."
)
def command(run: str | None, every: float) -> int:
    """Watch RUN, a run's folder or its name under runs/; default: the newest run. `q` leaves, space pauses the view.
    The run continues either way.
    """
    newest = runs_below(Path("runs"))
    folder = find_run(run) if run is not None else next(iter(newest[-1:]), None)
    if folder is None:
        raise no_such_run(run) if run is not None else UserError("no run in runs", action="ft run RECIPE makes one")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("ft watch needs a terminal", action=f"ft runs show {folder} prints the same")
    from finetooth_watch.screen import WatchApp

    WatchApp(folder, every).run()
    return 0
