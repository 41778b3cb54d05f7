"""`ft runs`: list, show, compare and remove runs, and say what they take on disk."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click
from finetooth_hooks.errors import UserError
from finetooth_saving.run_folder import no_such_run
from finetooth_saving.runs.recorded import (
    BEGUN,
    Recorded,
    find_run,
    groups_below,
    is_running,
    read_run,
    runs_below,
    size_of,
)
from finetooth_toolbox.files.locks import FolderHeldError, lock_folder
from finetooth_toolbox.text.controls import escape_controls
from finetooth_toolbox.text.measures import short_hashes, size

from finetooth_runs.comparison import differences, results
from finetooth_runs.tables import duration, moment, number, table, width

RUNS = Path("runs")
STATUSES = ("done", "stopped", "interrupted", "failed", "running", "unfinished")

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
folder_option = click.option(
    "--folder", type=click.Path(path_type=Path), default=RUNS, show_default=True, help="The folder of the runs."
)


@click.group("runs")
def command() -> None:
    """List, show, compare and remove runs, and show how much disk they take.

    RUN is a run's folder, or its name under runs/.
    """


@command.command("list")
@folder_option
@click.option("--status", type=click.Choice(STATUSES), help="Only runs of this status.")
@as_json_option
def list_(folder: Path, status: str | None, as_json: bool) -> int:
    """List runs, the newest last."""
    runs = [read_run(path) for path in _folders(folder)]
    if status is not None:
        runs = [run for run in runs if run.status == status]
    if as_json:
        click.echo(json.dumps([summary(run) for run in runs], indent=2))
        return 0
    if not runs:
        click.echo(f"no run in {folder}" if status is None else f"no run in {folder} is {status}")
        _tell_groups(folder)
        return 0
    rows = [
        (
            run.name,
            run.status,
            _steps(run),
            _headline(run),
            run.pick("method") or "-",
            run.model or "-",
            moment(run.began),
        )
        for run in runs
    ]
    click.echo(table(("run", "status", "steps", "best or last", "method", "model", "began"), rows, width()))
    _tell_groups(folder)
    _tell_problems(runs)
    return 0


@command.command("show")
@click.argument("run")
@as_json_option
def show(run: str, as_json: bool) -> int:
    """Show one run: how it ended, its decisions, its measurements, and how much disk it takes."""
    recorded = read_run(_folder(run))
    if as_json:
        click.echo(json.dumps({**summary(recorded), "plan": recorded.plan, "recipe": recorded.recipe}, indent=2))
        return 0
    ended = f"{recorded.status}: {recorded.reason}" if recorded.reason else recorded.status
    lines = [
        ("run", str(recorded.folder)),
        ("status", ended),
        ("steps", _steps(recorded)),
        ("time", duration(recorded.seconds)),
        ("began", moment(recorded.began)),
        ("model", recorded.model or "-"),
        *(
            (kind, recorded.pick(kind))
            for kind in ("method", "adapter", "optimizer", "schedule")
            if recorded.pick(kind)
        ),
        *((f"last {name}", number(value)) for name, value in sorted(recorded.last.items())),
        *((f"best {name}", number(value)) for name, value in sorted(recorded.best.items())),
        *((name, size(taken)) for name, taken in size_of(recorded.folder).items() if not name.startswith(".")),
    ]
    wide = max(14, *(len(name) for name, _ in lines)) + 2
    click.echo("\n".join(f"{name:<{wide}}{escape_controls(text)}" for name, text in lines))
    _tell_problems([recorded])
    return 0


@command.command("compare")
@click.argument("runs", nargs=-1, required=True)
@as_json_option
def compare(runs: tuple[str, ...], as_json: bool) -> int:
    """Compare RUNS: the settings in which they differ, and their results side by side."""
    if len(runs) < 2:
        raise UserError("ft runs compare: one run cannot be compared", action="name two or more")
    recorded = [read_run(_folder(run)) for run in runs]
    settings, outcomes = differences(recorded), results(recorded)
    if as_json:
        names = [str(run.folder) for run in recorded]
        click.echo(json.dumps({"runs": names, "settings": settings, "results": outcomes}, indent=2))
        return 0
    headers = ("setting", *(run.name for run in recorded))
    if settings:
        click.echo(table(headers, [(name, *map(_value, values)) for name, values in settings.items()], width()))
    else:
        click.echo("their settings are the same")
    click.echo("")
    shown = [
        (name, *("not measured" if value is None else number(value) for value in values))
        for name, values in outcomes.items()
    ]
    click.echo(table(("result", *headers[1:]), shown, width()))
    _tell_problems(recorded)
    return 0


@command.command("du")
@click.argument("runs", nargs=-1)
@folder_option
@as_json_option
def du(runs: tuple[str, ...], folder: Path, as_json: bool) -> int:
    """Show how much disk RUNS take, the largest first; default: all runs. The trials of a sweep are one line."""
    if runs and folder != RUNS:
        raise UserError(f"--folder {folder}: RUNS are named too", action="leave out one of them")
    folders = [_folder(run) for run in runs] if runs else [*_folders(folder), *groups_below(folder)]
    sizes = sorted(((path, size_of(path)) for path in folders), key=lambda entry: -sum(entry[1].values()))
    if as_json:
        content = [{"run": str(path), "bytes": sum(parts.values()), "parts": parts} for path, parts in sizes]
        click.echo(json.dumps(content, indent=2))
        return 0
    rows = []
    for path, parts in sizes:
        largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
        rows.append(
            (path.name, size(sum(parts.values())), ", ".join(f"{name} {size(taken)}" for name, taken in largest))
        )
    rows.append(("total", size(sum(sum(parts.values()) for _, parts in sizes)), ""))
    click.echo(table(("run", "takes", "most of it"), rows, width()))
    return 0


@command.command("rm")
@click.argument("runs", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(runs: tuple[str, ...], yes: bool) -> int:
    """Remove RUNS with all that is in their folders. A run that is under way is refused."""
    folders = list(dict.fromkeys(_folder(run) for run in runs))
    for folder in folders:
        if folder.is_symlink():
            raise UserError(f"{folder} is a link", action="name the folder that the link leads to; nothing was removed")
        if is_running(folder):
            raise UserError(f"{folder}: the run is under way", action="stop it first; nothing was removed")
    total = sum(sum(size_of(folder).values()) for folder in folders)
    named = ", ".join(map(str, folders))
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"{named}: {size(total)} would be removed", action="add --yes; nothing was removed")
        click.confirm(f"Remove {named} ({size(total)})?", abort=True)
    for folder in folders:
        _remove(folder)
        click.echo(f"{folder} removed")
    return 0


def summary(run: Recorded) -> dict[str, Any]:
    """A run as JSON says it."""
    return {
        "run": run.name,
        "folder": str(run.folder),
        "status": run.status,
        "reason": run.reason,
        "steps": run.step,
        "total_steps": run.total_steps,
        "seconds": round(run.seconds, 3),
        "began": run.began,
        "model": run.model,
        "picks": dict(run.plan.get("picks", {})),
        "last": run.last,
        "best": dict(run.best),
        "problems": list(run.problems),
    }


def _remove(folder: Path) -> None:
    """
    Raises:
        UserError: it is under way, or not all of it could be removed.
    """
    try:
        with lock_folder(folder):
            # what makes it a run goes last: one that could be removed only in part can be named again
            for path in sorted(folder.iterdir(), key=lambda entry: entry.name in BEGUN):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        folder.rmdir()
    except FolderHeldError as error:
        raise UserError(
            f"{folder}: the run is under way in process {error.who}", action="stop it first; nothing was removed"
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder}: some of it could not be removed: {error.strerror}", action="remove the rest"
        ) from error


def _folders(folder: Path) -> list[Path]:
    """
    Raises:
        UserError: the folder does not exist, and is not the default place of runs.
    """
    if folder != RUNS and not folder.is_dir():
        raise UserError(f"--folder: no such folder: {folder}", action="check the path")
    return runs_below(folder)


def _folder(reference: str) -> Path:
    """
    Raises:
        UserError: it means no run.
    """
    folder = find_run(reference)
    if folder is not None:
        return folder
    if group := groups_below(RUNS).get(RUNS / reference):
        raise UserError(
            f"{reference!r} is not one run, it holds {len(group)}",
            action=f"name one, such as {reference}/{group[-1].name}",
        )
    raise no_such_run(reference)


def _steps(run: Recorded) -> str:
    return f"{run.step}/{run.total_steps}" if run.total_steps is not None else str(run.step)


def _headline(run: Recorded) -> str:
    """The best of the first evaluator, else the last loss."""
    for name, value in (*run.best.items(), *run.last.items()):
        return f"{name} {number(value)}"
    return "-"


def _value(value: Any) -> str:
    """A setting as a table has it: a hash by its first digits, and in words that a run does not set it."""
    return "not set" if value is None else short_hashes(value if isinstance(value, str) else json.dumps(value))


def _tell_groups(folder: Path) -> None:
    """Where more runs are: those of sweeps lie a folder deeper."""
    for path, runs in groups_below(folder).items():
        click.echo(f"{path.name} holds {len(runs)} more: ft runs list --folder {path}")


def _tell_problems(runs: list[Recorded]) -> None:
    for run in runs:
        for problem in run.problems:
            click.echo(f"{run.name}: {escape_controls(problem)}", err=True)
