"""`ft run`: train what a recipe describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from finetooth_hooks.entries import Command
from finetooth_hooks.errors import UserError

from finetooth_core.cli.recipe_arguments import recipe_arguments, with_output

if TYPE_CHECKING:
    from finetooth_hooks.reports import Outcome

    from finetooth_core.api import Session
    from finetooth_core.cli.state import State

SUGGESTIONS = 2
"""How many commands the end of a run suggests."""


@click.command("run")
@recipe_arguments
@click.option("--resume", is_flag=True, help="Go on with the run that `output` holds, if there is one.")
@click.option("--accept-changes", is_flag=True, help="With --resume: although recipe, data or model changed.")
@click.pass_obj
def command(
    state: State, recipe: str, overrides: tuple[str, ...], output: str | None, resume: bool, accept_changes: bool
) -> int:
    """Train what RECIPE describes.

    KEY=VALUE changes one setting: train.batch_size=4, adapter.rank=8, data.train=mine.jsonl.
    """
    overrides = with_output(overrides, output)
    session = state.session(recipe, overrides)
    if resume:
        session = _resumed(state, session, recipe, overrides, accept_changes)
    elif accept_changes:
        raise UserError("--accept-changes goes with --resume", action="add --resume")
    session.check_output()
    return carry_out(session)


def carry_out(session: Session) -> int:
    """Show the plan, train, show what came of it; returns the exit code."""
    from rich.console import Console

    from finetooth_core.cli import render

    console = Console(highlight=False)
    render.show(console, *render.plan_parts(console, session.plan), render.data_table(console, session.reports))
    outcome = session.run()
    console.print()
    render.show(console, *render.summary_parts(console, outcome, session.evaluations))
    console.print(render.next_steps(outcome, session.folder, suggestions(session, outcome)), soft_wrap=True)
    return outcome.exit_code


def _resumed(state: State, session: Session, recipe: str, overrides: tuple[str, ...], accept_changes: bool) -> Session:
    """The session that goes on with the run in the recipe's output; the session itself if there is none yet."""
    from finetooth_core.run_folder import is_run_folder

    if not session.recipe.output:
        raise UserError("--resume: the recipe names no output", action="add output: DIR, or use ft resume DIR")
    if not is_run_folder(session.folder):
        return session
    return state.resumed(str(session.folder), overrides, recipe=recipe, accept_changes=accept_changes)


def suggestions(session: Session, outcome: Outcome) -> list[str]:
    """Commands that do something with what was trained: the core's own, then those of plugins that say so. A run that
    was interrupted can go on."""
    from finetooth_core.opened import is_scalar

    if outcome.artifact is None:
        return []
    folder = str(session.folder)
    quoted = folder if all(c.isalnum() or c in "-_./" for c in folder) else f"'{folder}'"
    if outcome.status == "interrupted":
        return [f"ft resume {quoted}", f"ft chat {quoted}"]
    offered = [
        (r.entry.name, r.entry.after_run if isinstance(r.entry, Command) else "")
        for r in session.plugins.catalog.all("command")
    ]
    brought = [f"ft {name} {arguments.format(run=quoted)}" for name, arguments in offered if arguments]
    own = [] if is_scalar(session) else [f"ft chat {quoted}"]
    return [*own, *brought][:SUGGESTIONS]
