"""`ft doctor`: what is wrong with a run, and what to do; what a model computes, and what a loss begins with."""

from __future__ import annotations

from pathlib import Path

import click
from finetooth_hooks.errors import UserError
from finetooth_saving.run_folder import no_such_run
from finetooth_saving.runs.advice import advice
from finetooth_saving.runs.recorded import Recorded, find_run, read_run
from finetooth_toolbox.text.controls import escape_controls

from finetooth_doctor.catalogue import in_log, of_code
from finetooth_doctor.loss_check import command as loss_check
from finetooth_doctor.model_check import command as model_check
from finetooth_doctor.weights_check import command as weights_check

MOST = 20_000_000
"""Bytes of a log, from its end, that are looked through."""


class RunFirst(click.Group):
    """A group whose first word may also be a run, or nothing: `ft doctor RUN` is `ft doctor run RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args[:1] and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["run", *args])


@click.group("doctor", cls=RunFirst)
def command() -> None:
    """Say what is wrong with a run, a model, or a recipe's loss, and what to do.

    `ft doctor RUN` is `ft doctor run RUN`.
    """


command.add_command(loss_check)
command.add_command(model_check)
command.add_command(weights_check)


@command.command("run")
@click.argument("run", required=False)
@click.option("--exit-code", type=int, help="Exit code of the process: 137, or -9 as in Python.")
@click.option("--log", type=click.Path(path_type=Path), help="File with its output; known errors are explained.")
def of_run(run: str | None, exit_code: int | None, log: Path | None) -> int:
    """Say what is wrong with RUN, a run's folder or its name under runs/, and what to do. Exit code 1 if something is.

    Also for a run that is under way.
    """
    if run is None and exit_code is None and log is None:
        raise UserError(
            "ft doctor: nothing to look at",
            action="name a run, --exit-code N, or --log FILE; ft doctor model MODEL tries a model",
        )
    lines: list[str] = []
    if exit_code is not None:
        lines.append(of_code(exit_code))
    if log is not None:
        lines += in_log(_tail(log)) or [f"{log}: it holds no error that ft doctor knows"]
    if run is not None:
        folder = find_run(run)
        if folder is None:
            raise no_such_run(run)
        problems = findings(read_run(folder))
        if not problems and not lines:
            click.echo("its reports show no problem")
            return 0
        lines += problems
    click.echo("\n".join(escape_controls(line) for line in lines))
    return 1


def findings(run: Recorded) -> list[str]:
    """How a run ended where that was not as planned, files that cannot be read, and what its reports show."""
    problems = [f"cannot be read: {problem}" for problem in run.problems]
    if run.status == "unfinished":
        problems.append(
            f"the process was killed after step {run.step} (exit code 137: host memory, or a queue's limit) or the "
            f"machine went down; ft resume {run.folder} continues"
        )
    elif run.status in ("failed", "interrupted"):
        resumed = f"; ft resume {run.folder} continues" if run.status == "interrupted" else ""
        problems.append(f"{run.status}: {run.reason}{resumed}")
        problems += in_log(run.reason)
    return [*problems, *advice(run)]


def _tail(log: Path) -> str:
    """
    Raises:
        UserError: it cannot be read.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - MOST))
            return file.read().decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"--log: {log}: {error.strerror}", action="check the path") from error
