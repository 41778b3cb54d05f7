"""`ft data`: rows as the model will see them, data made ready ahead, and what is kept of them."""

from __future__ import annotations

import heapq
import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.errors import UserError

from finetooth_core.cli.recipe_arguments import recipe_arguments, with_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetooth_core.cli.state import State
    from finetooth_core.data.preview import RenderedRow, RowView

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_ROWS = re.compile(r"data\.(train|eval)(\.\d+)?\.rows")
"""Decisions about which rows are taken."""
AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}


@click.group("data")
def command() -> None:
    """See rows as the model will see them, make data ready, and manage what is kept of them."""


@command.command()
@recipe_arguments
@click.option("--split", type=click.Choice(["train", "eval"]), default="train", help="Which rows; default: train.")
@click.option("--rows", "count", type=click.IntRange(min=1), default=3, help="How many rows; default: 3.")
@click.option("--row", "wanted", metavar="N|ID", help="One row: its number from 1, or its id as errors name it.")
@click.option("--longest", "by_length", is_flag=True, help="The longest rows instead of the first.")
@click.option("--dropped", is_flag=True, help="Rows that are left out, and why.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.pass_obj
def preview(
    state: State, recipe: str, overrides: tuple[str, ...], output: str | None, split: str, count: int,
    wanted: str | None, by_length: bool, dropped: bool, page: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show rows of RECIPE token by token: what trains, what is markup, where messages begin, what is cut or left out.

    Reads the data and the tokenizer; loads no weights and writes nothing but the page that --html asks for.
    """
    from finetooth_core.data.preview import rendered_rows

    if (wanted is not None) + by_length + dropped > 1:
        raise UserError("--row, --longest and --dropped each choose rows", action="give one of them")
    session = state.session(recipe, with_output(overrides, output))
    context = session.job.context
    rows = rendered_rows(context, split)
    if wanted is not None:
        rows = _one(rows, wanted)
    elif by_length:
        rows = iter(heapq.nlargest(count, rows, key=lambda row: len(row.rendered.tokens)))
    elif dropped:
        rows = (row for row in rows if not row.used)
    shown = [row.view(context.tokenizer) for row in islice(rows, count)]
    _show(shown, split, session.recipe.model.name, page, as_json=as_json)


def _one(rows: Iterator[RenderedRow], wanted: str) -> Iterator[RenderedRow]:
    for row in rows:
        if row.id == wanted or str(row.number) == wanted:
            yield row
            return
    raise UserError(
        f"there is no row {wanted!r}", action="give a number from 1, or an id as `ft data preview` shows it"
    )


def _show(views: list[RowView], split: str, model: str, page: Path | None, *, as_json: bool) -> None:
    from finetooth_core.cli import row_page, row_text

    if page is not None:
        page.write_text(row_page.render(views, split, model), encoding="utf-8")
        click.echo(f"{len(views)} rows: {page}")
    elif as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(view) for view in views], ensure_ascii=False, indent=2))
    elif not views:
        click.echo("no such rows")
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for view in views:
            console.print(row_text.render(view, color=console.is_terminal), soft_wrap=False)
        console.print(row_text.legend(color=console.is_terminal))


@command.command()
@recipe_arguments
@click.option("--json", "as_json", is_flag=True, help="Print what is found as JSON.")
@click.pass_obj
def check(state: State, recipe: str, overrides: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Read all data of RECIPE and say what they are like: what is left out and why, lengths, repeated rows, rows that
    are in both splits, padding, whose words train.

    A broken row is an error that names its file and line (exit code 2). Loads no weights and writes nothing.
    """
    import dataclasses

    from finetooth_core.data.expectation import expectation
    from finetooth_core.data.survey import survey

    session = state.session(recipe, with_output(overrides, output))
    job = session.job
    findings = survey(job)
    ahead = expectation(job, next((one for one in findings.surveys if one.split == "train"), None))
    decisions = [one for one in job.plan.decisions if one.setting.startswith("data.")]
    chosen = [one for one in decisions if _ROWS.fullmatch(one.setting)]
    others = [one for one in decisions if one not in chosen]
    if as_json:
        import json

        found = {
            "decisions": [dataclasses.asdict(one) for one in others],
            "chosen": [dataclasses.asdict(one) for one in chosen],
            "reports": [dataclasses.asdict(report) for report in session.reports],
            "surveys": [dataclasses.asdict(one) for one in findings.surveys],
            "in_both": dataclasses.asdict(findings.in_both),
            "unread": findings.unread,
            "steps": ahead.steps,
            "ahead": dataclasses.asdict(ahead),
            "notes": job.plan.notes,
        }
        click.echo(json.dumps(found, indent=2, default=str))
        return
    from rich.console import Console

    from finetooth_core.cli import render, survey_text

    console = Console(highlight=False)
    render.show(
        console,
        survey_text.settled(console, others),
        render.data_table(console, session.reports),
        *([survey_text.choice(chosen)] if chosen else []),
        *(survey_text.render(one) for one in findings.surveys),
        survey_text.verdict(
            findings, ahead, job.plan.notes, f"{job.request.hardware.label}, {job.plan.train.precision}"
        ),
    )


@command.command()
@recipe_arguments
@click.pass_obj
def prepare(state: State, recipe: str, overrides: tuple[str, ...], output: str | None) -> None:
    """Make the tokens of RECIPE's data ahead, on all cores, and keep them: a run after this starts at once.

    Loads no weights and makes no run folder.
    """
    from rich.console import Console

    from finetooth_core.cli import render

    session = state.session(recipe, with_output(overrides, output))
    console = Console(highlight=False)
    decisions = [decision for decision in session.plan.decisions if decision.setting.startswith("data.cache.")]
    render.show(console, render.data_table(console, session.reports))
    for decision in decisions:
        click.echo(f"{decision.setting}  {decision.value}  {decision.reason}")


@command.group()
def cache() -> None:
    """List and remove prepared data."""


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the entries as JSON.")
def list_entries(as_json: bool) -> None:
    """What is kept, last used first."""
    from datetime import datetime

    from finetooth_core.data.cache import list_cache
    from finetooth_core.data.folders import cache_folder

    entries = list_cache()
    if as_json:
        import json

        names = ("key", "bytes", "sources", "rows", "made", "used")
        click.echo(json.dumps([{name: getattr(entry, name) for name in names} for entry in entries], indent=2))
        return
    from rich.console import Console

    from finetooth_core.cli.render import size, table

    if not entries:
        click.echo(f"nothing is kept in {cache_folder()}")
        return
    console = Console(highlight=False)
    rows = [
        (entry.key[:12], ", ".join(entry.sources), f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}",
         f"{entry.rows:,}", size(entry.bytes))
        for entry in entries
    ]  # fmt: skip
    console.print(table(console, "Prepared data", ("key", "sources", "last used", "rows", "size"), rows, numbers=2))
    click.echo(f"{size(sum(entry.bytes for entry in entries))} in {cache_folder()}")


@cache.command()
@click.option("--keep", metavar="SIZE", help="Until the rest is no larger, such as 5GB.")
@click.option("--older-than", metavar="AGE", help="What was not used for so long: 12h, 7d, 2w.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
def prune(keep: str | None, older_than: str | None, everything: bool) -> None:
    """Remove prepared data, those used longest ago first; never what a run is using."""
    from finetooth_core.cli.render import size
    from finetooth_core.data.cache import prune_cache

    if (keep is not None) + (older_than is not None) + everything != 1:
        raise UserError("one of --keep, --older-than and --all says what is removed", action="give one of them")
    given: dict[str, Any] = {"all": True}
    if keep is not None:
        given = {"keep_bytes": int(_measured(keep, UNITS, "--keep", "5GB"))}
    elif older_than is not None:
        given = {"older_than": _measured(older_than, AGES, "--older-than", "7d")}
    pruned = prune_cache(**given)
    removed = size(sum(entry.bytes for entry in pruned.removed))
    click.echo(f"removed {len(pruned.removed)} ({removed}); {size(pruned.bytes)} are left")
    if pruned.in_use:
        click.echo(f"{len(pruned.in_use)} in use by a run were kept")


def _measured(text: str, units: dict[str, int], option: str, example: str) -> float:
    """A number with a unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in units:
        known = ", ".join(unit for unit in units if unit)
        raise UserError(f"{option}={text!r} is no number with a unit ({known})", action=f"write it as {example}")
    return float(found[1]) * units[found[2].lower()]
