"""`ft run`: train what a recipe describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from finetooth_hooks.entries import Command

from finetooth_core.cli.recipe_arguments import recipe_arguments, with_output

if TYPE_CHECKING:
    from finetooth_hooks.reports import Outcome

    from finetooth_core.api import Session
    from finetooth_core.cli.state import State

SUGGESTIONS = 2
"""How many commands the end of a run suggests."""


@click.command("run")
@recipe_arguments
@click.pass_obj
def command(state: State, recipe: str, overrides: tuple[str, ...], output: str | None) -> int:
    """Train what RECIPE describes.

    KEY=VALUE changes one setting: train.batch_size=4, adapter.rank=8, data.train=mine.jsonl.
    """
    from rich.console import Console

    from finetooth_core.cli import render

    console = Console(highlight=False)
    session = state.session(recipe, with_output(overrides, output))
    session.check_output()
    render.show(console, *render.plan_parts(console, session.plan), render.data_table(console, session.reports))
    outcome = session.run()
    console.print()
    render.show(console, *render.summary_parts(console, outcome, session.evaluations))
    console.print(render.next_steps(outcome, session.folder, suggestions(session, outcome)), soft_wrap=True)
    return outcome.exit_code


def suggestions(session: Session, outcome: Outcome) -> list[str]:
    """Commands that do something with what was trained: the core's own, then those of plugins that say so."""
    from finetooth_core.opened import is_scalar

    if outcome.artifact is None:
        return []
    folder = str(session.folder)
    quoted = folder if all(c.isalnum() or c in "-_./" for c in folder) else f"'{folder}'"
    offered = [
        (r.entry.name, r.entry.after_run if isinstance(r.entry, Command) else "")
        for r in session.plugins.catalog.all("command")
    ]
    brought = [f"ft {name} {arguments.format(run=quoted)}" for name, arguments in offered if arguments]
    own = [] if is_scalar(session) else [f"ft chat {quoted}"]
    return [*own, *brought][:SUGGESTIONS]
