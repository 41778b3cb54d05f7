"""Tools for runs of recipes: those of the folder in which the server was started, for callers with the scope `admin`
and for the process that started it.

A run is given by its name under `runs/`, a recipe by its file's name in the same folder; paths are refused, so no other
file of the server can be reached.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, UserError
from finetooth_hooks.faces import FaceCaller
from finetooth_saving.runs import processes
from finetooth_saving.runs.advice import advice
from finetooth_saving.runs.processes import log_of, output_of
from finetooth_saving.runs.recorded import Recorded, is_run, plain_name, read_run, runs_below

RUNS = Path("runs")
OVERRIDE = re.compile(r"(train|optimizer|schedule|adapter|evaluate)\.\w+=[\w.+-]+")
"""Fields of the training; none names a file or a plugin."""
CURVE = 50
"""Most points of a curve in an answer, evenly spaced."""
Json = dict[str, Any]


def check_scope(caller: FaceCaller, *, started: bool) -> None:
    """Checks that the caller may see runs.

    Args:
        started: the caller is the process that started the server, which can also run `ft`.

    Raises:
        UserError: the caller may not see runs.
    """
    if not started and not caller.may("admin"):
        raise UserError(
            "runs of the server's own folder need a key with the scope admin",
            action="or start it as ft serve mcp --stdio",
        )


def all_runs() -> Json:
    """The runs, the latest last."""
    return {"runs": [_short(read_run(folder)) for folder in runs_below(RUNS)]}


def one_run(name: str) -> Json:
    """The facts of a run from its folder, with its curves."""
    folder = folder_of(name)
    if not is_run(folder):
        status = "failed" if processes.is_free(folder) else "starting"
        return {"run": name, "status": status, "output": output_of(folder)}
    run = read_run(folder)
    curves = {key: _thinned(points) for key, points in run.series().items() if key == "loss" or key.startswith("eval/")}
    return {**_short(run), "recipe": run.recipe, "curves": curves, "problems": list(run.problems)}


def diagnosis(name: str) -> Json:
    """The problems in its reports, each with an action; and the end of its output."""
    folder = folder_of(name)
    problems = advice(read_run(folder)) if is_run(folder) else []
    return {"run": name, "wrong": problems, "output": output_of(folder)}


def start(context: CommandContext, recipe: str, name: str, overrides: list[str]) -> Json:
    """Begin a run of a recipe's file, in a separate process.

    Raises:
        UserError: the file does not exist, the name is taken, or an override is malformed.
    """
    file = Path(plain_name(recipe, "recipe"))
    if not file.is_file() or file.suffix not in (".yaml", ".yml"):
        raise UserError(f"recipe: no file {recipe!r} in the server's folder", action="name a .yaml file there")
    plain_name(name, "name")
    for override in overrides:
        if not OVERRIDE.fullmatch(override):
            raise UserError(f"overrides: {override!r} is not taken here", action="write them as train.max_steps=10")
    context.start(file, overrides, name)
    return {"run": name, "status": "starting", "next": "show_run with this name, until its status is done"}


def stop(context: CommandContext, name: str) -> Json:
    """Ask a run to end, like Ctrl-C: it saves the last whole step.

    Raises:
        UserError: it is not running.
    """
    context.stop(str(folder_of(name)))
    return {"run": name, "status": "stopping", "next": "show_run with this name"}


async def apart(function: Any, *arguments: Any) -> Json:
    """Run it in a thread, since disks are slow."""
    processes.reap()
    reply: Json = await asyncio.to_thread(function, *arguments)
    return reply


def folder_of(name: str) -> Path:
    """The folder of a run, by its name.

    Raises:
        UserError: no run has this name, or it is not a plain name.
    """
    folder = RUNS / plain_name(name, "run")
    if not is_run(folder) and not log_of(folder).exists():
        raise UserError(f"no run {name!r}", action="list_runs names them")
    return folder


def _short(run: Recorded) -> Json:
    return {
        "run": run.name,
        "status": run.status,
        "reason": run.reason,
        "steps": run.step,
        "total_steps": run.total_steps,
        "model": run.model,
        "method": run.pick("method"),
        "last": run.last,
        "best": dict(run.best),
    }


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = max(1, -(-len(points) // CURVE))
    thinned = points[::stride]
    return thinned if not points or thinned[-1] == points[-1] else [*thinned, points[-1]]
