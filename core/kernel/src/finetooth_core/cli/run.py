"""`ft run`: train what a recipe describes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from finetooth_hooks.entries import Backend, Command
from finetooth_hooks.errors import UserError
from finetooth_toolbox.cli.options import accept_memory_option, accepting
from finetooth_toolbox.cli.recipe_arguments import Described, recipe_arguments, with_output

from finetooth_core.cli.detail import Detail, detail_of, plan_detail

if TYPE_CHECKING:
    from finetooth_hooks.reports import Outcome

    from finetooth_core.cli.state import State
    from finetooth_core.session import Session

SUGGESTIONS = 2
"""How many commands the end of a run suggests."""


@click.command("run")
@recipe_arguments
@plan_detail
@click.option("--resume", is_flag=True, help="Continue the run that `output` holds, if there is one.")
@click.option("--accept-changes", is_flag=True, help="With --resume: resume although recipe, data or model changed.")
@click.option("--accept-dropped", is_flag=True, help="Train although more than half of the training rows are left out.")
@accept_memory_option
@click.option("--remote", metavar="URL", help="Train at this server; rows, tokens and losses stay here.")
@click.pass_obj
def command(
    state: State,
    recipe: Described,
    overrides: tuple[str, ...],
    output: str | None,
    verbose: bool,
    quiet: bool,
    resume: bool,
    accept_changes: bool,
    accept_dropped: bool,
    accept_memory: bool,
    remote: str | None,
) -> int:
    """Train a model as RECIPE describes.

    KEY=VALUE changes one setting: train.batch_size=4, adapter.rank=8, data.train=mine.jsonl.
    """
    detail = detail_of(verbose, quiet)
    overrides = accepting(with_output(overrides, output), accept_memory)
    if accept_dropped:
        overrides = (*overrides, "data.accept_dropped=true")
    if remote is not None:
        overrides = (*overrides, *_at_server(state, remote))
    session = state.session(recipe, overrides)
    if resume:
        session = _resumed(state, session, recipe, overrides, accept_changes)
    elif accept_changes:
        raise UserError("--accept-changes needs --resume", action="add --resume")
    if (code := session.start(own_command())) is not None:
        return code
    session.check_output()
    if not isinstance(recipe, str) and session.writes:
        from finetooth_toolbox.cli.streams import warn

        warn(f"no recipe was named; {session.folder / 'recipe.yaml'} will hold the one of this run")
    return carry_out(state, session, detail)


def carry_out(state: State, session: Session, detail: Detail = "choices") -> int:
    """Show the plan, train, show the result, export what the recipe lists; return the exit code."""
    if not session.writes:  # a launcher ends the first rank, which may still save, where another one fails
        outcome = session.run()
        return 0 if outcome.status in ("done", "stopped") else outcome.exit_code

    from finetooth_rows.choices.ahead import lines_ahead
    from finetooth_saving.runs.summary import summary_parts
    from finetooth_toolbox.cli.tables import plain_console, show

    from finetooth_core.cli import render

    console = plain_console()

    def show_plan() -> None:
        parts = render.plan_parts(console, session.plan, session.reports, detail, every=session.every_report)
        show(console, *parts)
        for line in lines_ahead(session.job):
            console.print(line, markup=False, soft_wrap=True)

    outcome = session.run(show_plan)
    console.print()
    show(console, *summary_parts(console, outcome, session.evaluations))
    console.print(render.next_steps(outcome, session.folder, suggestions(session, outcome)), soft_wrap=True)
    export_listed(state, session, outcome, click.echo)
    return outcome.exit_code


def export_listed(state: State, session: Session, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Run the exports in the recipe, also with exporters of its own plugins. If another process trained without network
    access, that process exported; of several ranks only one exports."""
    from finetooth_saving.exporting import export_all
    from finetooth_saving.runs.closed_network import must_close

    elsewhere = must_close(session.recipe.as_dict()) or not session.writes
    if session.recipe.export and outcome.artifact is not None and outcome.status == "done" and not elsewhere:
        state.plugins = session.plugins
        export_all(state, session.folder, session.recipe.export, say)


def own_command() -> list[str]:
    """This command again, as a program and its arguments."""
    return [sys.executable, "-m", "finetooth", *sys.argv[1:]]


def _at_server(state: State, url: str) -> tuple[str, ...]:
    """Overrides that pick the backend whose engines are at a server.

    Raises:
        UserError: none is installed, or several are.
    """
    backends = [
        backend
        for backend in state.catalog.all("backend")
        if isinstance(entry := backend.entry, Backend) and entry.remote and entry.outputs  # without any it only answers
    ]
    if len(backends) != 1:
        known = ", ".join(backend.full_name for backend in backends)
        raise UserError(
            f"--remote: several backends train at a server: {known}"
            if backends
            else "--remote: no installed backend trains at a server",
            action="set backend: {name: ..., url: ...} in the recipe"
            if backends
            else "see ft plugins list --kind backend",
        )
    return f"backend.name={backends[0].full_name}", f"backend.url={json.dumps(url)}"


def _resumed(
    state: State, session: Session, recipe: Described, overrides: tuple[str, ...], accept_changes: bool
) -> Session:
    """The session that continues the run in the recipe's output; the session itself if that has not begun."""
    from finetooth_saving.run_folder import is_begun

    if not session.recipe.output:
        raise UserError("--resume: the recipe names no output", action="add output: DIR, or use ft resume DIR")
    if not is_begun(session.folder):
        return session
    return state.resumed(str(session.folder), overrides, recipe=recipe, accept_changes=accept_changes)


def suggestions(session: Session, outcome: Outcome) -> list[str]:
    """Next commands for the artifact: the core's, then those that plugins suggest; `ft resume` for an interrupted
    run."""
    from finetooth_core.models.opened_model import is_scalar

    if outcome.artifact is None:
        return []
    folder = str(session.folder)
    quoted = folder if all(c.isalnum() or c in "-_./" for c in folder) else f"'{folder}'"
    if outcome.status == "interrupted":
        return [f"ft resume {quoted}", f"ft chat {quoted}"]
    offered = [r.entry for r in session.plugins.catalog.all("command") if isinstance(r.entry, Command)]

    def brought(arguments: Callable[[Command], str]) -> list[str]:
        return [f"ft {entry.name} {arguments(entry).format(run=quoted)}" for entry in offered if arguments(entry)]

    scalar = is_scalar(session.plan, session.plugins.catalog)
    first = brought(lambda entry: entry.after_scalar_run) if scalar else [f"ft chat {quoted}"]
    return [*first, *brought(lambda entry: entry.after_run)][:SUGGESTIONS]
