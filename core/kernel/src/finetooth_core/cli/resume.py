"""`ft resume`: continue a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from finetooth_toolbox.cli.options import accept_memory_option, accepting, start_options

from finetooth_core.cli.detail import detail_of, plan_detail

if TYPE_CHECKING:
    from finetooth_core.cli.state import State


@click.command("resume")
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@plan_detail
@click.option("--at", type=int, metavar="STEP", help="Resume from the checkpoint after this step, not the newest.")
@click.option("--accept-changes", is_flag=True, help="Resume although recipe, data or model changed.")
@click.option("--strict", is_flag=True, help="Resume only with the same versions of everything.")
@accept_memory_option
@click.option("--output", metavar="DIR", help="The run folder, for a run that is resumed from a URL.")
@click.pass_obj
def command(
    state: State,
    run: str,
    overrides: tuple[str, ...],
    verbose: bool,
    quiet: bool,
    at: int | None,
    accept_changes: bool,
    strict: bool,
    accept_memory: bool,
    output: str | None,
) -> int:
    """Continue RUN exactly as if it had never stopped.

    RUN is a run by its folder or its name under runs/, one of its checkpoints, or the URL that its checkpoints were
    sent to (s3://bucket/run). KEY=VALUE changes settings that cannot affect earlier steps: train.epochs=3, trackers,
    checkpoint, evaluate. Relative paths, also in KEY=VALUE, begin at the folder where the run was started.
    """
    from finetooth_core.cli.run import carry_out, own_command

    detail = detail_of(verbose, quiet)
    overrides = accepting(overrides, accept_memory)
    session = state.resumed(run, overrides, at=at, accept_changes=accept_changes, strict=strict, output=output)
    if (started := session.start(own_command())) is not None:
        return started
    return carry_out(state, session, detail)


for option in reversed(start_options()):
    command.params.insert(0, option)
