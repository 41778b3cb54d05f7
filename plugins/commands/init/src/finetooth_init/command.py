"""`ft init`: five questions, a look at the rows, a recipe."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from finetooth_hooks import CommandContext, DataError, Source, UserError
from finetooth_rows.choices.ahead import device_of, time_ahead, time_line
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.text.measures import memory_of

from finetooth_init.columns import SHOWN_ROWS, Columns, format_of, readable
from finetooth_init.goals import Goal, entry_of, goals_of
from finetooth_init.proposal import AUTO, Proposal, Wishes, as_lines, propose

MODEL = "smollm2-135m"
"""What is proposed where no model is named: it needs no download and trains on a CPU."""
EXAMPLE = {"name": "tasks", "task": "family", "split": "train", "count": 256, "seed": 1}
"""Made-up questions, for who has no rows yet."""
NOTHING = "nothing"
LOOKED_AT = 200
"""Rows that tell what can be learned."""
EXTENTS = {"look": "a look, 20 steps", "1": "one pass over the rows", "3": "three passes"}


@click.command("init")
@click.option("--data", metavar="DATA", help="Rows to train on, or 'nothing' for made-up ones.")
@click.option("--goal", metavar="METHOD", help="What to learn, as the name of a method, if the rows fit several.")
@click.option("--prompt", metavar="COLUMN", default="", help="Column with the prompt; guessed if no format knows it.")
@click.option("--completion", metavar="COLUMN", default="", help="Column with the answer.")
@click.option("--system", metavar="TEXT", default="", help="A system message for all rows.")
@click.option("--model", metavar="MODEL", help=f"The base model; {MODEL} if nothing is asked.")
@click.option("--memory", metavar="SIZE", help="Available memory, such as 24GB; default: this machine's.")
@click.option(
    "--passes",
    type=click.Choice(tuple(EXTENTS)),
    help="How long: a look, or passes over the rows; with --yes one, and more over few rows.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("recipe.yaml"), help="The recipe's file.")
@click.option("--yes", is_flag=True, help="Ask nothing; take the proposal for each missing option.")
@click.option("--run", "run_", is_flag=True, help="With --yes: train at once.")
@click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")
@click.pass_obj
def command(
    obj: CommandContext,
    data: str | None,
    goal: str | None,
    prompt: str,
    completion: str,
    system: str,
    model: str | None,
    memory: str | None,
    passes: str | None,
    output: Path,
    yes: bool,
    run_: bool,
    options: tuple[str, ...],
) -> int:
    """Ask which data you have and what the model should learn, look at the rows, and write a recipe with a reason for
    each setting.

    KEY=VALUE sets an option of the source that reads the rows, such as encoding=cp1252, and data.KEY=VALUE a setting of
    the recipe's data, such as data.renderer=chatml.
    """
    for option in options:
        if "=" not in option:
            problem = f"{option!r} is not an option of the source that reads the rows"
            raise UserError(problem, action=f"write KEY=VALUE, or name rows by --data {option}")
        if "." in option.partition("=")[0] and not option.startswith("data."):
            problem = f"{option!r} sets what ft init writes by itself"
            raise UserError(problem, action=f"leave it out here, then `ft run {output} {option}`")
    if output.exists():
        raise UserError(f"--output: {output} exists", action="name another file; nothing was changed")
    if not yes and not sys.stdin.isatty():
        raise UserError("ft init asks questions and needs a terminal", action="add --yes, with --data and --model")
    if yes and data is None:
        raise UserError("--yes needs to know the rows", action=f"add --data FILE, or --data {NOTHING}")
    ask = _Defaults() if yes else _Asker()
    source = data or ask.text("1. What data do you have? A file or folder of rows, or 'nothing'", NOTHING)
    own = [option.removeprefix("data.") for option in options if option.startswith("data.")]
    picked = obj.pick("data", own)
    settings = {} if isinstance(picked, str) else {key: value for key, value in picked.items() if key != "name"}
    read_by = [option for option in options if not option.startswith("data.")]
    rows = dict(EXAMPLE) if source == NOTHING else _rows(obj, source, read_by)
    model = model or MODEL
    try:
        chosen, format_ = _goal(obj, ask, rows, goal, model, Columns(prompt, completion, system))
    except DataError as error:
        if (setting := re.search(r"\bset (\w+): (\w+)", error.action)) is None:
            raise
        here = f"{error.action}; to ft init as {setting[1]}={setting[2]}"
        raise DataError("", error.problem, action=here) from error
    if not yes:
        model = ask.text("3. Which model?", model)
    size = _bytes(memory or ask.text("4. How much memory may the run take? Empty: all of this machine", ""))
    extent = passes or ask.choice("5. How long may the run take?", EXTENTS)
    with working("looking at all rows, the model and this machine"):
        proposal = propose(obj, chosen, Wishes(rows, model, size, extent, format=format_, settings=settings))
        job = obj.rows({**proposal.recipe, "trackers": []}).decided
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(as_yaml(proposal), encoding="utf-8")
    click.echo("")
    for note in proposal.plan.notes:
        if note.startswith(source):  # how its files were read
            click.echo(note)
    for section, reasons, _ in as_lines(proposal):
        for reason in reasons:
            click.echo(f"{section:<13} {reason}")
    count = proposal.plan.total_steps
    steps = f", {count:,} step{'' if count == 1 else 's'}" if count else ""
    click.echo(f"\nThe recipe is {output}{steps}.")
    click.echo(time_line(time_ahead(job), device_of(job)))
    if run_ if yes else ask.agree(f"Train now, as `ft run {output}` would?"):
        root = click.get_current_context().find_root()
        return int(
            root.command.main(["run", str(output)], prog_name=root.info_name, standalone_mode=False, obj=obj) or 0
        )
    click.echo(f"Next: ft check {output}, then ft run {output}")
    return 0


def _rows(obj: CommandContext, source: str, options: Sequence[str]) -> Any:
    """Rows by their name alone; with options, by what reads them.

    Raises:
        UserError: several would read them.
    """
    entries = [registered.entry for registered in obj.catalog.all("source")] if options else []
    known = {
        reader.name: reader.claims(source)
        for reader in entries
        if isinstance(reader, Source) and reader.claims is not None
    }
    most = max((claim.strength for claim in known.values() if claim is not None), default=0)
    best = [name for name, claim in known.items() if claim is not None and claim.strength == most]
    if not best:
        return source
    if len(best) > 1:
        raise UserError(f"{' and '.join(best)} both read {source}", action="leave one of them out with -p no:PACKAGE")
    pick = obj.pick(best[0], options)
    assert isinstance(pick, Mapping)
    return {**pick, "path": source}


def _goal(
    obj: CommandContext, ask: _Asker, rows: Any, wanted: str | None, model: str, columns: Columns
) -> tuple[Goal, Any]:
    """What is to be learned, of what the rows can teach; and the format that reads them, None if it is found by itself.

    Raises:
        UserError: they cannot teach what is wanted.
    """
    where = rows if isinstance(rows, str) else rows.get("path", rows["name"])
    recipe: dict[str, Any] = {"model": model, "data": {"train": rows}, "trackers": []}
    examples = None if columns.named else readable(obj, recipe, LOOKED_AT)
    format_: Mapping[str, Any] | None = None
    if examples is not None and columns.system:
        format_ = {"name": examples.format, "system": columns.system}
    elif examples is None:
        asks = None if isinstance(ask, _Defaults) else ask.text
        format_ = format_of(obj.rows(recipe).first("train", SHOWN_ROWS), columns, where, asks, click.echo)
    if format_ is not None:
        recipe["data"]["format"] = format_
        examples = obj.context(recipe).examples("train", first=LOOKED_AT)
    assert examples is not None
    goals = goals_of([example for _, example in examples.rows], where)
    click.echo(f"{where}: rows of format {examples.format}")
    if wanted is not None:
        for goal in goals:
            if goal.name == wanted:
                return goal, format_
        names = ", ".join(goal.name for goal in goals)
        raise UserError(f"--goal {wanted}: {where} has no rows for this goal", action=f"choose of {names}")
    if len(goals) == 1:
        number = "" if isinstance(ask, _Defaults) else "2. "  # of a question, where any are asked
        summary = entry_of(obj.catalog, goals[0]).summary
        click.echo(f"{number}These rows teach {goals[0].name}: {summary}.")
        return goals[0], format_
    chosen = ask.choice("2. What should it learn?", {goal.name: entry_of(obj.catalog, goal).summary for goal in goals})
    return next(goal for goal in goals if goal.name == chosen), format_


def _bytes(text: str) -> int:
    """Bytes of the memory that an answer names; 0 for an empty one.

    Raises:
        UserError: the text is not a size of memory.
    """
    return memory_of(text, "--memory") if text.strip() else 0


def as_yaml(proposal: Proposal) -> str:
    """The recipe, each section below its reasons."""
    import yaml

    parts = ["# Written by `ft init`. Every line may be changed; `ft check` shows what a change does.\n"]
    for section, reasons, value in as_lines(proposal):
        for reason in reasons:
            parts += [f"# {line}\n" for line in textwrap.wrap(reason, 110)]
        parts.append(yaml.safe_dump({section: value}, sort_keys=False, allow_unicode=True))
    return "".join(parts)


class _Asker:
    """Asks at the terminal."""

    def text(self, question: str, default: str) -> str:
        return str(click.prompt(question, default=default, show_default=bool(default)))

    def choice(self, question: str, choices: dict[str, str]) -> str:
        for name, says in choices.items():
            click.echo(f"   {name:<9} {says}")
        return str(click.prompt(question, type=click.Choice(list(choices)), default=next(iter(choices))))

    def agree(self, question: str) -> bool:
        return bool(click.confirm(question, default=False))


class _Defaults(_Asker):
    """Takes what is proposed."""

    def text(self, question: str, default: str) -> str:
        return default

    def choice(self, question: str, choices: dict[str, str]) -> str:
        return AUTO if choices is EXTENTS else next(iter(choices))

    def agree(self, question: str) -> bool:
        return False
